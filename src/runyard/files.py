"""Files are written completely or not at all, and only regular files are read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import weakref
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from runyard.errors import UserError

MAX_RECORD_BYTES = 2**24  # limit for a record or a configuration; real ones have some thousand bytes
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a symbolic link",
}
FIXES = {
    "fix its permissions": (errno.EACCES, errno.EPERM),
    "free some space": (errno.ENOSPC, errno.EDQUOT),
    "move it away": (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EEXIST, errno.EFBIG),
    "restore it": (errno.ENOENT,),
    "use a shorter path": (errno.ENAMETOOLONG,),
    "use a disk that is not mounted read-only": (errno.EROFS,),
    "use a disk whose file system can do this": (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EXDEV),
    "the disk may be faulty: ask its administrators": (errno.EIO,),
    "check that its disk is mounted": (errno.ENODEV, errno.ENXIO, errno.ENOTCONN),
    "free some memory": (errno.ENOMEM, errno.ENOBUFS),
    "raise the limit of open files (ulimit -n)": (errno.EMFILE, errno.ENFILE),
}
OTHER_FIX = "try again; if that repeats, ask the administrators of its disk"  # ESTALE, EAGAIN, ETIMEDOUT, EBUSY, ...


def write_atomic(path: Path, content: bytes | str, *, mode: int = 0o666) -> None:
    """Write ``content`` so that after any crash ``path`` holds either the old or the new content, never a part of it.

    A link at ``path`` is replaced, not followed.

    Args:
        mode: Permissions of the file, restricted by the umask.

    Raises:
        OSError: it cannot be written; or a device, a FIFO or a socket is there, as /dev/null, which root could replace.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_IFMT(there := os.lstat(path).st_mode) not in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR):
            raise _not_regular(there, path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # left by a process that died and had the same process id
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
    """Sync ``folder``, so that renames inside it survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path | str, *, follow_links: bool = True, dir_fd: int | None = None) -> BufferedReader:
    """Open a regular file for reading. A FIFO or a device is refused before anything is read from it.

    Args:
        follow_links: Whether the last part of ``path`` may be a symbolic link.
        dir_fd: The open directory that a relative ``path`` starts from.

    Raises:
        OSError: the file cannot be opened, or is not a regular file; ``strerror`` says what it is instead.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags if follow_links else flags | os.O_NOFOLLOW, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_links:
            raise _not_regular(stat.S_IFLNK, path) from None
        if error.errno == errno.ENXIO:  # the kernel's error for a socket
            raise _not_regular(os.stat(path, dir_fd=dir_fd).st_mode, path) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _not_regular(mode, path)
    return open(descriptor, "rb")


def open_within(folder: Path, name: str) -> BufferedReader:
    """Open a regular file below ``folder``, such as ``checkpoints/last/state.pt``, without following any link.

    A directory that another user wrote may contain links that lead to files which only this user can read.

    Raises:
        OSError: as for ``open_regular``; or a part of ``name`` is a link or ``..``, as ``strerror`` says.
    """
    *parents, last = Path(name).parts
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parents:
            if part in ("..", "/"):
                raise OSError(errno.EINVAL, f"{name} leads outside of this directory", str(folder))
            try:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
            except NotADirectoryError:  # the kernel's error for a link, too
                raise OSError(errno.ENOTDIR, f"{part} is not a directory", str(folder / name)) from None
            os.close(descriptor)
            descriptor = inner
        return open_regular(last, follow_links=False, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def folder_within(folder: Path, name: str) -> Path:
    """Return the directory ``name`` in ``folder``, creating it if needed.

    Raises:
        OSError: it cannot be created; or a link or a file has its name, as ``strerror`` says.
    """
    path = folder / name
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    mode = path.lstat().st_mode
    if not stat.S_ISDIR(mode):
        raise OSError(errno.ENOTDIR, f"{_KINDS.get(stat.S_IFMT(mode), 'a file')}, not a directory", str(path))
    return path


def open_lock(path: Path) -> BinaryIO:
    """Open a lock file, creating it if needed. Nothing is written to it, and no link is followed.

    Raises:
        OSError: it cannot be created, or is not a regular file.
    """
    return open(_open_or_create(path), "rb+", buffering=0)


def open_append(path: Path) -> BinaryIO:
    """Open a file for appending and reading, creating it if needed. No link is followed.

    Raises:
        OSError: it cannot be created, or is not a regular file.
    """
    return open(_open_or_create(path, os.O_APPEND), "ab+")


@contextlib.contextmanager
def explaining_unreadable(path: Path) -> Iterator[None]:
    """Raise UserError, with what a user can do, instead of OSError within the block: ``path`` cannot be read."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror})", file_fix(error)) from None


def file_fix(error: OSError) -> str:
    """Return what a user can do about a file or a folder that could not be opened, created, locked or written."""
    return next((fix for fix, errnos in FIXES.items() if error.errno in errnos), OTHER_FIX)


def _open_or_create(path: Path, flags: int = 0) -> int:
    flags |= os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_regular(stat.S_IFLNK, path) from None
        raise
    if not stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(mode, path)
    return descriptor


def _not_regular(mode: int, path: Path | str) -> OSError:
    number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    return OSError(number, f"{_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file", str(path))


def read_regular(path: Path | str, *, follow_links: bool = True) -> bytes:
    """Return the bytes of a regular file; see ``open_regular``."""
    with open_regular(path, follow_links=follow_links) as file:
        return file.read()


def duplicate_descriptor(file: BufferedReader, owner: object) -> int:
    """Return a new descriptor of an open file. It is closed when ``owner`` is deleted, not when ``file`` is closed."""
    descriptor = os.dup(file.fileno())
    weakref.finalize(owner, os.close, descriptor)
    return descriptor


def read_within(folder: Path, name: str, *, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
    """Return the bytes of a regular file below ``folder``; see ``open_within``.

    Raises:
        OSError: as for ``open_within``; or the file has more than ``max_bytes`` bytes.
    """
    with open_within(folder, name) as file:
        if (size := os.fstat(file.fileno()).st_size) > max_bytes:
            raise OSError(errno.EFBIG, f"{size:,} bytes, expected at most {max_bytes:,}", str(folder / name))
        return file.read(max_bytes)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file, in hexadecimal."""
    with open_regular(path) as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
