"""The code of a submission, kept: a queued run does not change when the checkout does."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from pathlib import Path

SCRIPTS = ("ask.sh", "begin.sh", "python.sh", "requeue.sh")  # what a batch script calls


def snapshot(store: Path) -> str:
    """Copy packages and the scripts of jobs into ``store``/HASH, once per content, and return the hash.

    The store is shared by all runs: equal code keeps one path, so its compiled kernels are cached across runs.
    """
    root = Path(__file__).parent
    packages = {"runyard": root}
    launcher = root.parents[1] / "cluster"
    if launcher.is_dir():
        packages["cluster"] = launcher
    files = {
        f"{name}/{p.relative_to(folder)}": p for name, folder in packages.items() for p in sorted(folder.rglob("*.py"))
    }
    scripts = [root.parents[1] / "slurm" / name for name in SCRIPTS]
    files |= {f"slurm/{script.name}": script for script in scripts if script.exists()}
    digest = hashlib.sha256()
    for name, source in files.items():
        digest.update(f"{name}\0".encode() + hashlib.sha256(source.read_bytes()).digest())
    target = store / digest.hexdigest()[:16]
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
    return digest.hexdigest()
