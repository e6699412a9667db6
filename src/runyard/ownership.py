"""Ownership of files and directories: what another user can write is never trusted by its name (see SECURITY.md).

Other users may share the folder of runs, a node's disk and /tmp. Files of this user there are in a directory whose name
ends with the user id, which this user created, and which nobody else can write.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import shlex
import shutil
import stat
import time
from pathlib import Path

from runyard.errors import UserError

UMASK, UMASK_WITH_GROUP = 0o077, 0o027
DAY_S = 86_400
UNUSED_DAYS = 30  # after which compiled code is deleted
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def foreign_owner(path: Path) -> str | None:
    """Return the name of the owner of ``path``, or None if that is this user or root, who can do anything anyway.

    Raises:
        OSError: it does not exist, or cannot be examined.
    """
    return _other_user(path.stat().st_uid)


def require_owner(path: Path, what: str, instead: str) -> None:
    """Refuse a file or directory that belongs to another user.

    Args:
        what: Its name in the message, such as "run ID".
        instead: What to do instead, such as "start one of your own with `runyard submit`".

    Raises:
        UserError: it belongs to another user, whom the message names.
    """
    if (owner_name := foreign_owner(path)) is not None:
        raise UserError(f"{what} belongs to {owner_name}", f"{instead}")


def per_user_name(name: str) -> str:
    """Return the name of this user's own directory in a place that others share: NAME-UID."""
    return f"{name}-{os.getuid()}"


def set_umask(*, group_reads: bool) -> None:
    """Let only this user, or also the group, read what this process and its children write from now on."""
    os.umask(UMASK_WITH_GROUP if group_reads else UMASK)


def keep_others_from_writing() -> None:
    """From now on keep the user's umask, except that what this process and its children write only the group may write.

    Whoever writes a manifest of prepared data decides what others train on.
    """
    os.umask(os.umask(UMASK) | stat.S_IWOTH)


def private_folder(folder: Path, *, group_reads: bool = False) -> Path:
    """Return ``folder``, which only this user can write, creating it if needed. Its parent must exist.

    Args:
        group_reads: Whether the group may read it; else only this user can.

    Raises:
        OSError: it cannot be created; or, as ``strerror`` says, it is a link, belongs to another user, or is writable
            by others, so that its content may not be this user's; or anybody can replace it, or a directory above it.
    """
    parent = Path(os.path.realpath(folder.parent))
    for path in (parent, *parent.parents):
        mode = path.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            message = (
                f"any user can replace the files in {path}; choose another place, or: chmod +t {shlex.quote(str(path))}"
            )
            raise OSError(errno.EPERM, message, str(path))
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    descriptor = _open_directory(folder)
    try:
        folder_stat = os.fstat(descriptor)
        if (owner_name := _other_user(folder_stat.st_uid)) is not None:
            raise OSError(errno.EPERM, f"{folder} belongs to {owner_name}; choose another place", str(folder))
        if folder_stat.st_mode & WRITABLE_BY_OTHERS:
            message = f"others can write {folder}; check its files, then: chmod go-w {shlex.quote(str(folder))}"
            raise OSError(errno.EPERM, message, str(folder))
        if group_reads and not folder_stat.st_mode & stat.S_IRGRP:
            os.fchmod(descriptor, stat.S_IMODE(folder_stat.st_mode) | 0o050)
    finally:
        os.close(descriptor)
    return folder


def compiler_cache(parent: Path, kind: str, version: str) -> Path:
    """Return this user's own folder in ``parent`` for compiled code of this version. Deletes old versions' folders.

    Raises:
        OSError: as ``private_folder``, or the disk is full.
    """
    folder, now = private_folder(parent / per_user_name(f"runyard-{kind}")) / version, time.time()
    if not folder.exists() or now - folder.stat().st_mtime > DAY_S:
        folder.mkdir(mode=0o700, exist_ok=True)
        os.utime(folder)
        for other in folder.parent.iterdir():
            if now - other.lstat().st_mtime > UNUSED_DAYS * DAY_S:
                shutil.rmtree(other, ignore_errors=True)
    return folder


def writable_by_others(folder: Path) -> tuple[str, str] | None:
    """Return problem and fix of the first path in ``folder`` that others own or can write, or that is a link, or None.

    Raises:
        OSError: it does not exist, or cannot be examined.
    """
    for path in (folder, *sorted(folder.rglob("*"))):
        try:
            path_stat = path.lstat()
        except FileNotFoundError:  # a job that starts there has just renamed a compiled file to its final name
            if path == folder:
                raise
            continue
        if (owner_name := _other_user(path_stat.st_uid)) is not None:
            return f"{path} belongs to {owner_name}", ""
        if stat.S_ISLNK(path_stat.st_mode):
            return f"{path} is a symbolic link", ""
        if path_stat.st_mode & WRITABLE_BY_OTHERS:
            return f"others can write {path}", f"check its files, then: chmod -R go-w {shlex.quote(str(folder))}"
    return None


def _open_directory(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            message = f"{folder} is a link or a file, not a directory; remove it, or choose another place"
            raise OSError(errno.ENOTDIR, message, str(folder)) from None
        raise


def _other_user(uid: int) -> str | None:
    if uid in (0, os.getuid()):
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
