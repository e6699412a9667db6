"""Whose a file or directory is: what another user can write is not trusted by its name."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from runyard.errors import UserError


def owner(path: Path) -> str | None:
    """The user who owns ``path``, in words, if that is somebody else. Root, who can do anything anyway, counts as us.

    Raises:
        OSError: it is not there, or cannot be looked at.
    """
    uid = path.stat().st_uid
    if uid in (0, os.getuid()):
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def require_own(path: Path, what: str, instead: str) -> None:
    """Refuse what belongs to another user.

    Args:
        what: Names it in the message, as "run ID".
        instead: What to do, as "begin one of your own with `runyard submit`".

    Raises:
        UserError: saying whose it is.
    """
    if (whose := owner(path)) is not None:
        raise UserError(f"{what} belongs to {whose}; {instead}")
