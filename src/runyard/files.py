"""Files that are written whole or not at all, and read only where they are regular files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import weakref
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

MAX_RECORD_BYTES = 2**24  # of a record or a configuration, which hold some thousand
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

    A link at ``path`` is replaced, and none is written through.

    Args:
        mode: Permissions of the file, less what the umask takes away.
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


def open_regular(path: Path | str, *, follow_links: bool = True, dir_fd: int | None = None) -> BufferedReader:
    """Open a regular file to read its bytes. Never waits for a FIFO's writer, never begins to read an endless device.

    Args:
        follow_links: Whether the last part of ``path`` may be a symbolic link.
        dir_fd: The open directory that a relative ``path`` is below.

    Raises:
        OSError: as ``open``; or it is something else, which ``strerror`` names.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags if follow_links else flags | os.O_NOFOLLOW, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_links:
            raise _not_regular(stat.S_IFLNK, path) from None
        if error.errno == errno.ENXIO:  # what the kernel says of a socket
            raise _not_regular(os.stat(path, dir_fd=dir_fd).st_mode, path) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _not_regular(mode, path)
    return open(descriptor, "rb")


def open_within(folder: Path, name: str) -> BufferedReader:
    """Open a regular file below ``folder``, as ``checkpoints/last/state.pt``, by way of real directories alone.

    A directory that another user wrote may hold links, which lead to what only this user can read.

    Raises:
        OSError: as ``open_regular``; or a part of ``name`` is a link or ``..``, as ``strerror`` says.
    """
    *between, last = Path(name).parts
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in between:
            if part in ("..", "/"):
                raise OSError(errno.EINVAL, f"{name} leads out of it", str(folder))
            try:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            except NotADirectoryError:  # also what the kernel says of a link
                raise OSError(errno.ENOTDIR, f"{part} is no directory", str(folder / name)) from None
            os.close(at)
            at = inner
        return open_regular(last, follow_links=False, dir_fd=at)
    finally:
        os.close(at)


def folder_within(folder: Path, name: str) -> Path:
    """A directory in ``folder``, made now if need be.

    Raises:
        OSError: it cannot be made; or a link or a file has its name, as ``strerror`` says.
    """
    path = folder / name
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    mode = path.lstat().st_mode
    if not stat.S_ISDIR(mode):
        raise OSError(errno.ENOTDIR, f"{_KINDS.get(stat.S_IFMT(mode), 'a file')}, not a directory", str(path))
    return path


def open_lock(path: Path) -> BinaryIO:
    """Open a file that is there to be locked, made now if need be. Nothing is written, and no link is followed.

    Raises:
        OSError: it cannot be made, or is no regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(mode, path)
    return open(descriptor, "rb+", buffering=0)


def _not_regular(mode: int, path: Path | str) -> OSError:
    number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    return OSError(number, f"{_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file", str(path))


def read_regular(path: Path | str, *, follow_links: bool = True) -> bytes:
    """The bytes of a regular file; see ``open_regular``."""
    with open_regular(path, follow_links=follow_links) as file:
        return file.read()


def duplicate_descriptor(file: BufferedReader, owner: object) -> int:
    """A descriptor of an open file that lives as long as ``owner``, whatever becomes of ``file``."""
    descriptor = os.dup(file.fileno())
    weakref.finalize(owner, os.close, descriptor)
    return descriptor


def read_within(folder: Path, name: str, *, most: int = MAX_RECORD_BYTES) -> bytes:
    """The bytes of a regular file below ``folder``; see ``open_within``.

    Raises:
        OSError: besides, it holds more than ``most`` bytes.
    """
    with open_within(folder, name) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise OSError(errno.EFBIG, f"{size:,} bytes, expected at most {most:,}", str(folder / name))
        return file.read(most)


def sha256(path: Path) -> str:
    """The sha256 of a regular file, in hexadecimal."""
    with open_regular(path) as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
