"""One process at a time: a lock on a file, which ends with its holder however that ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOCK_POLL_S = 0.1
WAIT_NOTICE_AFTER_S = 3.0
NO_LOCK_ERRNOS = {
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOLCK,
    errno.EINVAL,
}  # what a file system that has none answers


@contextlib.contextmanager
def exclusive_lock(
    path: Path, wait_s: float = math.inf, on_wait: Callable[[], None] = lambda: None
) -> Iterator[int | None]:
    """Within the block no other process is in a block on the same ``path``, a file that is made for it and stays.

    Gives the open file, which a child may be made to hold too; None where the file system has no locks, and so
    whoever comes must look what others have done. ``on_wait`` is called once where others have to be waited for long.

    Raises:
        TimeoutError: others were in it for ``wait_s``.
        OSError: the file cannot be made.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield file if _locked(file, path, wait_s, on_wait) else None
    finally:
        os.close(file)


def _locked(file: int, path: Path, wait_s: float, on_wait: Callable[[], None]) -> bool:
    began, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in NO_LOCK_ERRNOS:
                return False
            if error.errno != errno.EWOULDBLOCK:
                raise
        if time.monotonic() - began > wait_s:
            raise TimeoutError(f"{path}: held by another process for {wait_s:g} s")
        if not said and time.monotonic() - began > WAIT_NOTICE_AFTER_S:
            on_wait()
            said = True
        time.sleep(LOCK_POLL_S)
