"""An exclusive lock on a file. The kernel releases it when its holder ends, however that happens.

The package filelock would be no shorter here: it keeps its descriptor to itself, which sbatch must inherit, tells a
waiting user nothing, and takes a file that outlives its holder for the lock where the disk has none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from runyard.files import open_lock

LOCK_POLL_S = 0.1
WAIT_NOTICE_AFTER_S = 3.0
NO_LOCK_ERRNOS = {
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOLCK,
    errno.EINVAL,
}  # errors of a file system without locks


@contextlib.contextmanager
def exclusive_lock(
    path: Path, wait_s: float = math.inf, on_wait: Callable[[], None] = lambda: None
) -> Iterator[int | None]:
    """Hold an exclusive lock on the file ``path`` within the block. The file is created if needed, and stays.

    Yields the open file descriptor, which a child process may inherit to hold the lock too. Yields None if the file
    system has no locks: the caller must then check for itself what other processes have done. ``on_wait`` is called
    once if the wait is longer than ``WAIT_NOTICE_AFTER_S``.

    Raises:
        TimeoutError: other processes held the lock for ``wait_s`` seconds.
        OSError: the file cannot be created, or is not a regular one.
    """
    with open_lock(path) as file:
        yield file.fileno() if _locked(file.fileno(), path, wait_s, on_wait) else None


def _locked(file: int, path: Path, wait_s: float, on_wait: Callable[[], None]) -> bool:
    start_time, notified = time.monotonic(), False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in NO_LOCK_ERRNOS:
                return False
            if error.errno != errno.EWOULDBLOCK:
                raise
        if time.monotonic() - start_time > wait_s:
            raise TimeoutError(f"{path}: held by another process for {wait_s:g} s")
        if not notified and time.monotonic() - start_time > WAIT_NOTICE_AFTER_S:
            on_wait()
            notified = True
        time.sleep(LOCK_POLL_S)
