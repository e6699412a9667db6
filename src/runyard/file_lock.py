"""Locks on files. The kernel releases them when their holder ends, however that happens. No other module locks.

A lock is a courtesy: some file systems have none (Lustre mounted without flock, some NFS and FUSE). There a command
warns once and goes on, and its caller keeps two processes apart by other means.

The package filelock would be no shorter here: it keeps its descriptor to itself, which sbatch must inherit, tells a
waiting user nothing, and takes a file that outlives its holder for the lock where the disk has none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from runyard.files import open_lock

LOCK_POLL_S = 0.1
WAIT_NOTICE_AFTER_S = 3.0
NO_LOCK_ERRNOS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}  # errors of a file system without locks
_warned: set[int] = set()  # devices whose lack of locks was told


@contextlib.contextmanager
def exclusive_lock(
    path: Path, wait_s: float = math.inf, on_wait: Callable[[], None] = lambda: None
) -> Iterator[int | None]:
    """Hold an exclusive lock on the file ``path`` within the block. The file is created if needed, and stays.

    Yields the open file descriptor, which a child process may inherit to hold the lock too. Yields None if the file
    system has no locks, which is warned of: the caller must then check for itself what others have done. ``on_wait``
    is called once if the wait is longer than ``WAIT_NOTICE_AFTER_S``.

    Raises:
        TimeoutError: other processes held the lock for ``wait_s`` seconds.
        OSError: the file cannot be created, or is not a regular one.
    """
    with open_lock(path) as file:
        yield file.fileno() if _locked(file, path, wait_s, on_wait) else None


def try_lock(file: IO[bytes], *, shared: bool = False) -> bool | None:
    """Lock an open file without waiting. Returns False if another process holds it, None if there are no locks."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCK_ERRNOS:
            return None
        if error.errno != errno.EWOULDBLOCK:
            raise
        return False
    return True


def _locked(file: IO[bytes], path: Path, wait_s: float, on_wait: Callable[[], None]) -> bool:
    start_time, notified = time.monotonic(), False
    while not (locked := try_lock(file)):
        if locked is None:
            _warn_once(file, path)
            return False
        if time.monotonic() - start_time > wait_s:
            raise TimeoutError(f"{path}: held by another process for {wait_s:g} s")
        if not notified and time.monotonic() - start_time > WAIT_NOTICE_AFTER_S:
            on_wait()
            notified = True
        time.sleep(LOCK_POLL_S)
    return True


def _warn_once(file: IO[bytes], path: Path) -> None:
    if (device := os.fstat(file.fileno()).st_dev) not in _warned:
        _warned.add(device)
        message = f"{path.parent}: this disk has no file locks; going on without them"
        print(f"runyard: warning: {message}", file=sys.stderr, flush=True)
