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
from runyard.tracking.wandb.connection import ANSWER_TIMEOUT_S, base_url, obstacle
from runyard.tracking.wandb.files import DIRECTORY, FOLDER
from runyard.tracking.wandb.record import line

AT_ONCE = 8  # runs whose files are fetched at the same time
STAMP = ".heartbeat"  # when the server last heard of the run, as it was when its files were fetched


def fetch(project: str, progress: Callable[[int, int], None]) -> tuple[Path, list[str]]:
    """Bring all runs of ``project`` (ENTITY/PROJECT, or PROJECT of the key's own entity) into a folder of runs.

    What was fetched before and has not changed since is not fetched again. ``progress`` is told runs done and runs in
    all. Returns the folder, and a line for each kind of run that was passed over.

    Raises:
        UserError: no key, no server, no such project, or none of its runs was logged by runyard.
    """
    if (why := obstacle()) is not None:
        raise UserError(f"W&B: {why}")
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    try:
        api = wandb.Api(timeout=int(ANSWER_TIMEOUT_S))
        entity, _, name = project.rpartition("/")
        entity = entity or str(api.default_entity)
        there = list(api.runs(f"{entity}/{name}", per_page=100))
        folder = cache(entity, name)
        folder.mkdir(parents=True, exist_ok=True)
        found: list[bool] = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for ours in pool.map(lambda run: _bring(run, folder), there):
                found.append(ours)
                progress(len(found), len(there))
    except OSError as error:
        raise UserError(f"--wandb {project}: {error.filename or 'the cache'}: {error.strerror}; "
                        "XDG_CACHE_HOME names another folder") from None
    except Exception as error:  # W&B's own and its transports' are of many kinds
        raise UserError(f"--wandb {project}: {line(error)}; expected ENTITY/PROJECT as in W&B's addresses") from None
    strangers = [run.id for run, ours in zip(there, found, strict=True) if not ours]
    _forget({run.id for run in there} - set(strangers), folder)
    if len(strangers) == len(there):
        raise UserError(f"--wandb {project}: none of its {len(there)} runs was logged by runyard")
    if not strangers:
        return folder, []
    more = ", ..." if len(strangers) > 1 else ""
    return folder, [f"passed over {len(strangers)} that runyard did not log ({strangers[0]}{more})"]


def cache(entity: str, project: str) -> Path:
    """Where the fetched runs of a project lie."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return home / "runyard" / "wandb" / urlsplit(base_url()).netloc / entity / project


def _bring(run: Any, folder: Path) -> bool:
    """Make ``folder/ID`` what W&B has of the run's directory. Whether it has any."""
    place, stamp = folder / run.id, str(run.heartbeat_at)
    if place.parent != folder or run.id.startswith("."):
        return False  # no name that W&B's client or we would give
    if (place / STAMP).exists() and (place / STAMP).read_text() == stamp:
        return True
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as making:
        for file in run.files(names=[f"{FOLDER}/{name}" for name in DIRECTORY]):
            file.download(root=making).close()
        made = Path(making, FOLDER)
        if not (made / "run.json").exists():
            return False
        write_atomic(made / STAMP, stamp)
        shutil.rmtree(place, ignore_errors=True)
        made.rename(place)
    return True


def _forget(known: set[str], folder: Path) -> None:
    """Delete what W&B no longer has."""
    for path in folder.iterdir():
        if path.name not in known and not path.name.startswith("."):
            shutil.rmtree(path, ignore_errors=True)
