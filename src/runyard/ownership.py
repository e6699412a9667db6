"""Whose a file or directory is: what another user can write is not trusted by its name (SECURITY.md says more).

Others may share the folder of runs, a node's disk and /tmp. What this user puts there lies in a directory whose name
carries the user id, which this user made, and which nobody else can write.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
import tempfile
from pathlib import Path

from runyard.errors import UserError

UMASK, UMASK_WITH_GROUP = 0o077, 0o027
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def foreign_owner(path: Path) -> str | None:
    """The user who owns ``path``, in words, if that is somebody else. Root, who can do anything anyway, counts as us.

    Raises:
        OSError: it is not there, or cannot be looked at.
    """
    return _other_user(path.stat().st_uid)


def require_owner(path: Path, what: str, instead: str) -> None:
    """Refuse what belongs to another user.

    Args:
        what: Names it in the message, as "run ID".
        instead: What to do, as "begin one of your own with `runyard submit`".

    Raises:
        UserError: saying whose it is.
    """
    if (owner_name := foreign_owner(path)) is not None:
        raise UserError(f"{what} belongs to {owner_name}; {instead}")


def per_user_name(name: str) -> str:
    """The name of this user's own directory in a place that others share."""
    return f"{name}-{os.getuid()}"


def set_umask(*, group_reads: bool) -> None:
    """What this process and its children write from here on is for this user alone, or readable by the group too."""
    os.umask(UMASK_WITH_GROUP if group_reads else UMASK)


def private_folder(folder: Path, *, group_reads: bool = False) -> Path:
    """``folder``, which nobody but this user can write, made now if it is not there yet. Its parent must be there.

    Args:
        group_reads: Whether the group may look into it; else only this user can.

    Raises:
        OSError: it cannot be made; or, as ``strerror`` says, it is a link, another's, or writable by others, so that
            what lies in it may not be this user's; or everybody can put another in its place.
    """
    around = folder.parent.stat().st_mode
    if around & stat.S_IWOTH and not around & stat.S_ISVTX:
        words = f"everybody can exchange what lies in {folder.parent}; mend it with: chmod +t {folder.parent}"
        raise OSError(errno.EPERM, words, str(folder.parent))
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    descriptor = _open_directory(folder)
    try:
        found = os.fstat(descriptor)
        if (owner_name := _other_user(found.st_uid)) is not None:
            raise OSError(errno.EPERM, f"{folder} belongs to {owner_name}; choose another place", str(folder))
        if found.st_mode & WRITABLE_BY_OTHERS:
            words = f"others can write {folder}; look through it, then: chmod go-w {folder}"
            raise OSError(errno.EPERM, words, str(folder))
        if group_reads and not found.st_mode & stat.S_IRGRP:
            os.fchmod(descriptor, stat.S_IMODE(found.st_mode) | 0o050)
    finally:
        os.close(descriptor)
    return folder


def compiler_cache(name: str) -> Path:
    """This user's own directory for compiled code among temporary files; a fresh one where its name has been taken."""
    try:
        return private_folder(Path(tempfile.gettempdir()) / per_user_name(f"runyard-{name}"))
    except OSError:
        return Path(tempfile.mkdtemp(prefix=f"runyard-{name}-"))


def writable_by_others(folder: Path) -> str | None:
    """What in a directory others own or can write, in words, and links in it; None if there is no such thing.

    Raises:
        OSError: it is not there, or cannot be looked at.
    """
    for path in (folder, *sorted(folder.rglob("*"))):
        try:
            found = path.lstat()
        except FileNotFoundError:  # Python of a job that starts there just gave a compiled file its name
            if path == folder:
                raise
            continue
        if (owner_name := _other_user(found.st_uid)) is not None:
            return f"{path} belongs to {owner_name}"
        if stat.S_ISLNK(found.st_mode):
            return f"{path} is a symbolic link"
        if found.st_mode & WRITABLE_BY_OTHERS:
            return f"others can write {path}; look through it, then: chmod -R go-w {folder}"
    return None


def _open_directory(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            words = f"{folder} is no directory but a link or a file; remove it, or choose another place"
            raise OSError(errno.ENOTDIR, words, str(folder)) from None
        raise


def _other_user(uid: int) -> str | None:
    if uid in (0, os.getuid()):
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
