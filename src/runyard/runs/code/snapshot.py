"""Snapshots of the submitted code: a queued run does not change when the checkout does."""

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
from runyard.installation import PACKAGE, SCRIPTS
from runyard.ownership import per_user_name, private_folder, writable_by_others

CODE_STORE = per_user_name(".code")  # beside the runs
JOB_SCRIPTS = ("ask.sh", "begin.sh", "in_container.sh", "python.sh", "requeue.sh")  # scripts that a batch script calls


def checkout_files() -> dict[str, Path]:
    """Return the sources of the running program that jobs need, by their path in a snapshot."""
    return _sources({"runyard": PACKAGE, "slurm": SCRIPTS})


def snapshot_files(folder: Path) -> dict[str, Path]:
    """Return the sources in a snapshot, as ``checkout_files`` does; before 0.2 ``cluster`` was beside ``runyard``."""
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
    """Return the package's Python files and templates, including those behind a symbolic link in a checkout."""
    return [
        Path(folder, name)
        for folder, _, names in os.walk(package, followlinks=True)
        for name in names
        if name.endswith((".py", ".html"))
    ]


def content_hash(files: dict[str, Path]) -> str:
    """Return the sha256 of the sources' names and contents."""
    digest = hashlib.sha256()
    for name, source in files.items():
        digest.update(f"{name}\0".encode() + hashlib.sha256(read_regular(source)).digest())
    return digest.hexdigest()


def take_snapshot(store: Path, *, group_reads: bool = False) -> str:
    """Copy the packages and job scripts into ``store``/HASH, once per content, and return the hash.

    The store is shared by all runs of this user and by no other user's, since its files are executed.

    Raises:
        OSError: the disk is full or unwritable, or ``store`` is not private to this user.
        UserError: the existing copy does not match its hash.
    """
    files = checkout_files()
    code_hash = content_hash(files)
    target = private_folder(store, group_reads=group_reads) / code_hash[:16]
    if not target.exists():
        tmp_dir = store / f".making-{secrets.token_hex(4)}"
        try:
            for name, source in files.items():
                (tmp_dir / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, tmp_dir / name)
                (tmp_dir / name).chmod(0o700 if os.access(source, os.X_OK) else 0o600)
            for folder in (tmp_dir, *(path for path in tmp_dir.rglob("*") if path.is_dir())):
                folder.chmod(0o700)
            tmp_dir.rename(target)
        except OSError:
            if not target.exists():  # not merely a second submission that was faster
                raise
        finally:
            shutil.rmtree(tmp_dir, ignore_errors=True)
    verify_snapshot(target, code_hash)
    if group_reads:
        for path in (target, *target.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # temporary files of a job's Python while it compiles
                path.chmod(stat.S_IMODE(path.stat().st_mode) | (0o050 if os.access(path, os.X_OK) else 0o040))
    return code_hash


def verify_snapshot(code: Path, code_hash: str | None, *, trusted: bool = False) -> None:
    """Verify that the code to run is what was submitted, and that only this user could have changed it.

    Args:
        code: A snapshot.
        code_hash: The hash in ``run.json``, or None if it has none.
        trusted: Whether the user has confirmed that this code, which is another user's, may be run.

    Raises:
        UserError: the code was changed, or other users can write to it.
        OSError: it cannot be read.
    """
    if not trusted and (found := writable_by_others(code)) is not None:
        problem, fix = found
        raise UserError(f"the code in {code} is not run: {problem}", fix)
    files = snapshot_files(code)
    if not files or (code_hash is not None and content_hash(files) != code_hash):
        raise UserError(
            f"the code in {code} is not what was submitted: it was changed there",
            "move that directory away, and it is copied again from a checkout with the submitted code",
        )
