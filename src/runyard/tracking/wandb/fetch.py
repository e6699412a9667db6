"""Runs as Weights & Biases holds them, brought here as directories: what ``wandb_files`` keeps beside their curves.

So whoever reads run directories reads W&B's runs too, to the last prediction. Runs that another program logged have no
such files and are passed over.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runyard.errors import UserError
from runyard.files import write_atomic
from runyard.tracking.wandb.connection import ANSWER_TIMEOUT_S, base_url, connection_problem
from runyard.tracking.wandb.files import RUN_FILES, WANDB_FOLDER
from runyard.tracking.wandb.record import first_line

FETCH_THREADS = 8  # runs whose files are fetched at the same time
HEARTBEAT_FILE = ".heartbeat"  # when the server last heard of the run, as it was when its files were fetched


def fetch(project: str, progress: Callable[[int, int], None]) -> tuple[Path, list[str]]:
    """Bring all runs of ``project`` (ENTITY/PROJECT, or PROJECT of the key's own entity) into a folder of runs.

    What was fetched before and has not changed since is not fetched again. ``progress`` is told runs done and runs in
    all. Returns the folder, and a line for each kind of run that was passed over.

    Raises:
        UserError: no key, no server, no such project, or none of its runs was logged by runyard.
    """
    if (why := connection_problem()) is not None:
        raise UserError(f"W&B: {why}")
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    try:
        api = wandb.Api(timeout=int(ANSWER_TIMEOUT_S))
        entity, _, name = project.rpartition("/")
        entity = entity or str(api.default_entity)
        there = list(api.runs(f"{entity}/{name}", per_page=100))
        folder = cache_dir(entity, name)
        folder.mkdir(parents=True, exist_ok=True)
        found: list[bool] = []
        with ThreadPoolExecutor(FETCH_THREADS) as pool:
            for is_runyard in pool.map(lambda run: _fetch_run(run, folder), there):
                found.append(is_runyard)
                progress(len(found), len(there))
    except OSError as error:
        raise UserError(
            f"--wandb {project}: {error.filename or 'the cache'}: {error.strerror}; XDG_CACHE_HOME names another folder"
        ) from None
    except Exception as error:  # W&B's own and its transports' are of many kinds
        raise UserError(
            f"--wandb {project}: {first_line(error)}; expected ENTITY/PROJECT as in W&B's addresses"
        ) from None
    foreign_runs = [run.id for run, is_runyard in zip(there, found, strict=True) if not is_runyard]
    _delete_stale({run.id for run in there} - set(foreign_runs), folder)
    if len(foreign_runs) == len(there):
        raise UserError(f"--wandb {project}: none of its {len(there)} runs was logged by runyard")
    if not foreign_runs:
        return folder, []
    more = ", ..." if len(foreign_runs) > 1 else ""
    return folder, [f"passed over {len(foreign_runs)} that runyard did not log ({foreign_runs[0]}{more})"]


def cache_dir(entity: str, project: str) -> Path:
    """Where the fetched runs of a project lie."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return home / "runyard" / "wandb" / urlsplit(base_url()).netloc / entity / project


def _fetch_run(run: Any, folder: Path) -> bool:
    """Make ``folder/ID`` what W&B has of the run's directory. Whether it has any."""
    place, stamp = folder / run.id, str(run.heartbeat_at)
    if place.parent != folder or run.id.startswith("."):
        return False  # no name that W&B's client or we would give
    if (place / HEARTBEAT_FILE).exists() and (place / HEARTBEAT_FILE).read_text() == stamp:
        return True
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as making:
        for file in run.files(names=[f"{WANDB_FOLDER}/{name}" for name in RUN_FILES]):
            file.download(root=making).close()
        made = Path(making, WANDB_FOLDER)
        if not (made / "run.json").exists():
            return False
        write_atomic(made / HEARTBEAT_FILE, stamp)
        shutil.rmtree(place, ignore_errors=True)
        made.rename(place)
    return True


def _delete_stale(known: set[str], folder: Path) -> None:
    """Delete what W&B no longer has."""
    for path in folder.iterdir():
        if path.name not in known and not path.name.startswith("."):
            shutil.rmtree(path, ignore_errors=True)
