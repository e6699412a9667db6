"""The code of a submission, kept: a queued run does not change when the checkout does."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from pathlib import Path

from runyard.files import read_regular

SCRIPTS = ("python.sh", "requeue.sh")  # what starts a job's tasks, and what puts it back into the queue


def checkout() -> dict[str, Path]:
    """The sources of the running program that jobs need, by their place in a snapshot."""
    root = Path(__file__).parent
    return _sources({"runyard": root, "cluster": root.parents[1] / "cluster", "slurm": root.parents[1] / "slurm"})


def kept(folder: Path) -> dict[str, Path]:
    """The sources in a snapshot, as ``checkout`` names them."""
    return _sources({name: folder / name for name in ("runyard", "cluster", "slurm")})


def _sources(places: dict[str, Path]) -> dict[str, Path]:
    files = {
        f"{name}/{p.relative_to(places[name])}": p
        for name in ("runyard", "cluster")
        for p in sorted(places[name].rglob("*.py"))
    }
    scripts = [places["slurm"] / name for name in SCRIPTS]
    return files | {f"slurm/{script.name}": script for script in scripts if script.exists()}


def content_hash(files: dict[str, Path]) -> str:
    """The sha256 of sources: of their names and contents."""
    digest = hashlib.sha256()
    for name, source in files.items():
        digest.update(f"{name}\0".encode() + hashlib.sha256(read_regular(source)).digest())
    return digest.hexdigest()


def snapshot(store: Path) -> str:
    """Copy packages and the scripts of jobs into ``store``/HASH, once per content, and return the hash.

    The store is shared by all runs: equal code keeps one path, so its compiled kernels are cached across runs.
    """
    files = checkout()
    code_hash = content_hash(files)
    target = store / code_hash[:16]
    if not target.exists():
        making = store / f".making-{secrets.token_hex(4)}"
        try:
            for name, source in files.items():
                (making / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, making / name)
            making.rename(target)
        except OSError:
            if not target.exists():  # not merely a second submission that was quicker
                raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return code_hash
