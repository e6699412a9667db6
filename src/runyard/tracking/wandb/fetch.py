"""Downloads runs from Weights & Biases as run directories, of the files that ``files`` uploads beside their curves.

So whatever reads run directories reads W&B's runs, too, to the last prediction. Runs that another program logged have
no such files and are skipped.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runyard.errors import UserError
from runyard.files import write_atomic
from runyard.surroundings import cache_home
from runyard.tracking.wandb.connection import ANSWER_TIMEOUT_S, base_url, connection_problem, naming_refused_settings
from runyard.tracking.wandb.files import RUN_FILES, WANDB_FOLDER
from runyard.tracking.wandb.record import first_line

FETCH_THREADS = 8  # runs whose files are fetched at the same time
HEARTBEAT_FILE = ".heartbeat"  # the server's last heartbeat of the run when its files were fetched


def fetch(project: str, progress: Callable[[int, int], None]) -> tuple[Path, list[str]]:
    """Download all runs of ``project`` (ENTITY/PROJECT, or PROJECT of the key's own entity) into a folder of runs.

    What was fetched before and has not changed since is not fetched again. ``progress`` is called with the runs done
    and the runs in all. Returns the folder, and a line for each kind of run that was skipped.

    Raises:
        UserError: there is no key, no server or no such project, or none of its runs was logged by runyard.
    """
    if (problem := connection_problem()) is not None:
        raise UserError(f"W&B: {problem}")
    import wandb

    with naming_refused_settings():
        wandb.setup(wandb.Settings(silent=True))
    try:
        api = wandb.Api(timeout=int(ANSWER_TIMEOUT_S))
        entity, _, name = project.rpartition("/")
        entity = entity or str(api.default_entity)
        runs = list(api.runs(f"{entity}/{name}", per_page=100))
        folder = cache_dir(entity, name)
        folder.mkdir(parents=True, exist_ok=True)
        fetched: list[bool] = []
        with ThreadPoolExecutor(FETCH_THREADS) as pool:
            for is_runyard in pool.map(lambda run: _fetch_run(run, folder), runs):
                fetched.append(is_runyard)
                progress(len(fetched), len(runs))
    except OSError as error:
        raise UserError(
            f"--wandb {project}: {error.filename or 'the cache'}: {error.strerror}",
            "XDG_CACHE_HOME names another folder",
        ) from None
    except Exception as error:  # W&B's own and its transports' are of many kinds
        raise UserError(
            f"--wandb {project}: {first_line(error)}", "expected ENTITY/PROJECT as in W&B's addresses"
        ) from None
    foreign_runs = [run.id for run, is_runyard in zip(runs, fetched, strict=True) if not is_runyard]
    _delete_stale({run.id for run in runs} - set(foreign_runs), folder)
    if len(foreign_runs) == len(runs):
        problem = f"--wandb {project}: none of its {len(runs)} runs was logged by runyard"
        raise UserError(problem, "give another project")
    if not foreign_runs:
        return folder, []
    several, more = ("s", ", ...") if len(foreign_runs) > 1 else ("", "")
    return folder, [f"skipped {len(foreign_runs)} run{several} that runyard did not log ({foreign_runs[0]}{more})"]


def cache_dir(entity: str, project: str) -> Path:
    """Return the folder of a project's fetched runs."""
    if (home := cache_home()) is None:
        raise UserError("there is no home directory to keep fetched runs in", "set XDG_CACHE_HOME to a folder")
    return home / "runyard" / "wandb" / urlsplit(base_url()).netloc / entity / project


def _fetch_run(run: Any, folder: Path) -> bool:
    """Make ``folder/ID`` equal to what W&B has of the run's directory. Return whether it has any."""
    target, heartbeat = folder / run.id, str(run.heartbeat_at)
    if target.parent != folder or run.id.startswith("."):
        return False  # neither W&B's client nor runyard gives such a name
    if (target / HEARTBEAT_FILE).exists() and (target / HEARTBEAT_FILE).read_text() == heartbeat:
        return True
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as tmp_dir:
        for file in run.files(names=[f"{WANDB_FOLDER}/{name}" for name in RUN_FILES]):
            file.download(root=tmp_dir).close()
        fetched = Path(tmp_dir, WANDB_FOLDER)
        if not (fetched / "run.json").exists():
            return False
        write_atomic(fetched / HEARTBEAT_FILE, heartbeat)
        shutil.rmtree(target, ignore_errors=True)
        fetched.rename(target)
    return True


def _delete_stale(known: set[str], folder: Path) -> None:
    """Delete the fetched runs that W&B no longer has."""
    for path in folder.iterdir():
        if path.name not in known and not path.name.startswith("."):
            shutil.rmtree(path, ignore_errors=True)
