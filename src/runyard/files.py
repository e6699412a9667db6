"""Files that are written whole or not at all, and read only where they are regular files."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a symbolic link",
}


def write_atomic(path: Path, content: bytes | str, mode: int = 0o666) -> None:
    """Write ``content`` so that after any crash ``path`` holds the old content or the new, never a part.

    A link at ``path`` is replaced, and none is written through. ``mode`` is what the umask leaves of it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # of a process that died and whose number came again
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as f:
            f.write(content.encode() if isinstance(content, str) else content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path | str, *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file to read its bytes. Never waits for a FIFO's writer, never begins to read an endless device.

    Args:
        follow_links: Whether the last part of ``path`` may be a symbolic link.

    Raises:
        OSError: as ``open``; or it is something else, which ``strerror`` names.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags if follow_links else flags | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_links:
            raise _not_regular(stat.S_IFLNK, path) from None
        if error.errno == errno.ENXIO:  # what the kernel says of a socket
            raise _not_regular(os.stat(path).st_mode, path) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _not_regular(mode, path)
    return os.fdopen(descriptor, "rb")


def _not_regular(mode: int, path: Path | str) -> OSError:
    number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    return OSError(number, f"{_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file", str(path))


def read_regular(path: Path | str, *, follow_links: bool = True) -> bytes:
    """The bytes of a regular file; see ``open_regular``."""
    with open_regular(path, follow_links=follow_links) as file:
        return file.read()


def sha256(path: Path) -> str:
    """The sha256 of a regular file, in hexadecimal."""
    with open_regular(path) as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
