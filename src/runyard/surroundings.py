"""Makes do with what a process is given: no passwd entry, no HOME, a TMPDIR that is gone or long, foreign packages.

Libraries fail in such places with tracebacks, or write into the working directory. ``settle`` is called before any of
them is imported, by the command line and by each task.
"""

from __future__ import annotations

import os
import pwd
import sys
import sysconfig
import tempfile
from pathlib import Path

from runyard.errors import UserError
from runyard.ownership import per_user_name, private_folder

MAX_TMPDIR_BYTES = 60  # a socket's path may have 107, and libraries put folders and names of their own into TMPDIR
TEMPORARY_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
# Packages that, from another environment, would be loaded in place of this one's. One that is not installed in this one
# is wanted from there.
PACKAGES = ("numpy", "torch", "torchvision", "numba", "ffcv", "cv2", "PIL", "psutil", "omegaconf", "hydra", "submitit",
            "wandb", "rich", "matplotlib")  # fmt: skip


def settle(*, needs_tmpdir: bool = False) -> None:
    """Set the variables that libraries read so that they work, and print what was left out.

    Args:
        needs_tmpdir: Whether this process cannot do without a temporary folder.

    Raises:
        UserError: there is none, and it needs one.
    """
    if user_name() is None:
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"  # what Python's getpass reads first
    if needs_tmpdir or "TMPDIR" in os.environ or not has_home():
        try:
            os.environ["TMPDIR"] = tempfile.tempdir = str(_temporary_folder())
            if not has_home():
                os.environ["HOME"] = str(private_folder(Path(os.environ["TMPDIR"]) / per_user_name("runyard-home")))
        except OSError as error:
            if needs_tmpdir:
                tried = ", ".join(dict.fromkeys(filter(None, [os.environ.get("TMPDIR"), *TEMPORARY_FOLDERS])))
                raise UserError(
                    f"no temporary folder can be written ({error.strerror}): tried {tried}",
                    "set TMPDIR to a folder with room on this node",
                ) from None
    _leave_out_foreign_packages()


def open_standard_streams() -> None:
    """Open /dev/null for those that are closed: else the next file opened would get what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(null, number)
                os.close(null)
            stream = os.fdopen(number, "r" if name == "stdin" else "w", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def user_name() -> str | None:
    """Return the user's name by passwd or the environment; None in a container that knows neither."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return os.environ.get("LOGNAME") or os.environ.get("USER")


def has_home() -> bool:
    """Return whether ``~`` means anything: without HOME and passwd Python would make a folder of that name."""
    return os.path.isabs(os.path.expanduser("~"))


def cache_home() -> Path | None:
    """Return the folder of the user's caches, None without a home directory."""
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder)
    return Path(os.path.expanduser("~/.cache")) if has_home() else None


def _temporary_folder() -> Path:
    """Return TMPDIR, or another if it cannot be used: a short one of this user's own if it is too long for sockets.

    Raises:
        OSError: there is none.
    """
    tempfile.tempdir = None
    folder = Path(tempfile.gettempdir())
    unusable = folder == Path.cwd() and str(folder) != os.environ.get("TMPDIR")  # Python's last resort
    if not unusable and len(os.fsencode(folder)) <= MAX_TMPDIR_BYTES:
        return folder
    problem: OSError = FileNotFoundError(2, "No usable temporary directory")
    for parent in TEMPORARY_FOLDERS:
        try:
            short = private_folder(Path(parent) / per_user_name("runyard-tmp"))
            with tempfile.TemporaryFile(dir=short) as file:
                file.write(b"x")
        except OSError as error:
            problem = error
        else:
            return short
    if unusable:
        raise problem
    return folder  # long, but what needs no socket works


def _leave_out_foreign_packages() -> None:
    """Take from PYTHONPATH the folders of other environments, whose packages would be loaded in place of this one's."""
    own = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    kept = []
    for entry in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        foreign = next((n for n in PACKAGES if _holds(Path(entry), n) and any(_holds(o, n) for o in own)), None)
        if foreign is None or any(o.exists() and o.samefile(entry) for o in own):
            kept.append(entry)
            continue
        sys.path[:] = [path for path in sys.path if path != entry]
        print(
            f"runyard: warning: PYTHONPATH: {entry} is left out: it holds another {foreign}",
            file=sys.stderr,
            flush=True,
        )
    if "PYTHONPATH" in os.environ:
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)


def _holds(folder: Path, package: str) -> bool:
    return (folder / package).is_dir() or (folder / f"{package}.py").is_file()
