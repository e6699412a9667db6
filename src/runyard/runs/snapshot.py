"""The code of a submission, kept: a queued run does not change when the checkout does."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from pathlib import Path

from runyard.errors import UserError
from runyard.files import read_regular
from runyard.ownership import per_user_name, private_folder, writable_by_others

CODE_STORE = per_user_name(".code")  # beside the runs
JOB_SCRIPTS = ("ask.sh", "begin.sh", "python.sh", "requeue.sh")  # what a batch script calls


def checkout_files() -> dict[str, Path]:
    """The sources of the running program that jobs need, by their place in a snapshot."""
    root = Path(__file__).parents[1]
    return _sources({"runyard": root, "slurm": root.parents[1] / "slurm"})


def snapshot_files(folder: Path) -> dict[str, Path]:
    """The sources in a snapshot, as ``checkout_files`` names them; before 0.2 ``cluster`` lay beside ``runyard``."""
    return _sources({name: folder / name for name in ("runyard", "cluster", "slurm")})


def _sources(places: dict[str, Path]) -> dict[str, Path]:
    files = {
        f"{name}/{p.relative_to(places[name])}": p
        for name in ("runyard", "cluster")
        if name in places
        for p in sorted(_modules(places[name]))
    }
    scripts = [places["slurm"] / name for name in JOB_SCRIPTS]
    return files | {f"slurm/{script.name}": script for script in scripts if script.exists()}


def _modules(package: Path) -> list[Path]:
    """Its files of Python, also those that a link in a checkout leads to."""
    return [
        Path(folder, name)
        for folder, _, names in os.walk(package, followlinks=True)
        for name in names
        if name.endswith(".py")
    ]


def content_hash(files: dict[str, Path]) -> str:
    """The sha256 of sources: of their names and contents."""
    digest = hashlib.sha256()
    for name, source in files.items():
        digest.update(f"{name}\0".encode() + hashlib.sha256(read_regular(source)).digest())
    return digest.hexdigest()


def take_snapshot(store: Path, *, group_reads: bool = False) -> str:
    """Copy packages and the scripts of jobs into ``store``/HASH, once per content, and return the hash.

    The store is shared by all runs of this user, and by no other's: what lies there is run.

    Raises:
        OSError: the disk is full or unwritable, or ``store`` is not this user's alone.
        UserError: the copy that is there is not what its name says.
    """
    files = checkout_files()
    code_hash = content_hash(files)
    target = private_folder(store, group_reads=group_reads) / code_hash[:16]
    if not target.exists():
        making = store / f".making-{secrets.token_hex(4)}"
        try:
            for name, source in files.items():
                (making / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, making / name)
                (making / name).chmod(0o700 if os.access(source, os.X_OK) else 0o600)
            for folder in (making, *(path for path in making.rglob("*") if path.is_dir())):
                folder.chmod(0o700)
            making.rename(target)
        except OSError:
            if not target.exists():  # not merely a second submission that was quicker
                raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
    verify_snapshot(target, code_hash)
    if group_reads:
        for path in (target, *target.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # as Python of a job leaves them while it compiles
                path.chmod(stat.S_IMODE(path.stat().st_mode) | (0o050 if os.access(path, os.X_OK) else 0o040))
    return code_hash


def verify_snapshot(code: Path, code_hash: str | None, *, trusted: bool = False) -> None:
    """See that what is about to be run is what was submitted, and that nobody but this user could have changed it.

    Args:
        code: A snapshot.
        code_hash: As ``run.json`` has it; None of a run that has none.
        trusted: A person has said that this code, another user's, is to be run.

    Raises:
        UserError: it is not.
        OSError: it cannot be read.
    """
    if not trusted and (words := writable_by_others(code)) is not None:
        raise UserError(f"the code in {code} is not run: {words}")
    if code_hash is not None and content_hash(snapshot_files(code)) != code_hash:
        raise UserError(
            f"the code in {code} is not what was submitted: it was changed there; move that directory away, and it is "
            "taken anew from a checkout that holds the same"
        )
