"""Files that are written whole or not at all, and read only where they are regular files."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import weakref
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a symbolic link",
}


def write_atomic(path: Path, content: bytes | str, *, mode: int = 0o666) -> None:
    """Write ``content`` so that after any crash ``path`` holds the old content or the new, never a part.

    Args:
        mode: Permissions of the file, less what the umask takes away.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as f:
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


def open_regular(path: Path | str, *, follow_links: bool = True) -> BufferedReader:
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
    return open(descriptor, "rb")


def _not_regular(mode: int, path: Path | str) -> OSError:
    number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    return OSError(number, f"{_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file", str(path))


def read_regular(path: Path | str, *, follow_links: bool = True) -> bytes:
    """The bytes of a regular file; see ``open_regular``."""
    with open_regular(path, follow_links=follow_links) as file:
        return file.read()


def keep_open(file: BufferedReader, owner: object) -> int:
    """A descriptor of an open file that lives as long as ``owner``, whatever becomes of ``file``."""
    descriptor = os.dup(file.fileno())
    weakref.finalize(owner, os.close, descriptor)
    return descriptor


def sha256(path: Path) -> str:
    """The sha256 of a regular file, in hexadecimal."""
    with open_regular(path) as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
