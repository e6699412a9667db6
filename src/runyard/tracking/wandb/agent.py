"""Reads what the W&B sweep agent passes to the command it starts: run, sweep, and sampled parameters.

`runyard submit` records it in the new run's ``run.json``. From then on the run itself knows which run at W&B it is: on
another machine, after a restart, or when `runyard sync` sends it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from runyard.config.schema import Config
from runyard.errors import UserError
from runyard.runs.record import WandbAssignment, read_record
from runyard.runs.run import Run
from runyard.runs.store import run_dirs

SWEEP_VARIABLE, RUN_VARIABLE, PARAMETERS_VARIABLE = "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"
SERVICE_VARIABLE = "WANDB_SERVICE"  # set by W&B's client in a process that has a helper, for that process's children
# Variables of the folders that W&B's client fills, each with the one by which a user moves those of all programs.
FOLDER_VARIABLES = {"WANDB_CACHE_DIR": "XDG_CACHE_HOME", "WANDB_DATA_DIR": "XDG_DATA_HOME"}
CLIENT_FOLDER = "runyard-wandb"  # in the names of those given here


@dataclass(frozen=True)
class SweepAssignment:
    """A run of a W&B sweep that an agent was assigned.

    Attributes:
        run: The run's id at W&B.
        sweep: The sweep's id.
        project: The sweep's project.
        entity: The sweep's entity, None for the user's default one.
        sampled: The settings that W&B sampled, by their dotted names.
    """

    run: str
    sweep: str
    project: str
    entity: str | None
    sampled: dict[str, object]

    def overrides(self, given: list[str], config: Config) -> list[str]:
        """Return the overrides, besides the ``given`` ones that make ``config``, by which the agent finds the run.

        Raises:
            UserError: the given ones set the project or the entity themselves; W&B would get no results from the run,
                and its agent would sample further settings without one; or both SLURM and W&B would restart the run.
        """
        if config.tracking.mode in ("none", "offline"):
            raise UserError(
                f"tracking.mode={config.tracking.mode}: W&B's sweep {self.sweep} would get no results from this run",
                "add tracking=online to the sweep's command",
            )
        if config.cluster.launcher == "slurm" and config.cluster.requeue:
            raise UserError(
                "cluster.requeue=true: W&B itself restarts the interrupted runs of a sweep",
                "add cluster.requeue=false to the sweep's command",
            )
        settings = {"tracking.project": self.project, "tracking.entity": self.entity}
        for override in given:
            if override.lstrip("+").partition("=")[0] in settings:
                raise UserError(f"{override}: a run of a W&B sweep belongs to the sweep's project", "leave this out")
        return [f"{name}={json.dumps(value)}" for name, value in settings.items()]

    def existing_run(self, runs_dir: Path | str) -> Run | None:
        """Return the run if ``runs_dir`` holds it already: after a preemption W&B assigns a run a second time."""
        for directory in run_dirs(runs_dir):
            with contextlib.suppress(UserError):  # another run that is damaged is skipped
                assigned = read_record(directory).get("wandb") or {}
                if (assigned.get("id"), assigned.get("sweep")) == (self.run, self.sweep):
                    return Run.open(directory)
        return None

    @property
    def record(self) -> WandbAssignment:
        """The assignment as ``run.json`` holds it."""
        return {"id": self.run, "sweep": self.sweep, "drawn": self.sampled}


def sweep_assignment(env: Mapping[str, str]) -> SweepAssignment | None:
    """Return what the agent that started this command assigned to it, None if no agent started it.

    Raises:
        UserError: the environment holds only a part of an assignment.
    """
    if not env.get(SWEEP_VARIABLE):  # a run's id alone was set by the user
        return None
    for name, fix in (
        (RUN_VARIABLE, f"unset {SWEEP_VARIABLE}"),
        ("WANDB_PROJECT", "start it as: wandb agent ENTITY/PROJECT/SWEEP"),
    ):
        if not env.get(name):
            raise UserError(
                f"{SWEEP_VARIABLE}={env[SWEEP_VARIABLE]} is set, as W&B's agent does, and {name} is not", fix
            )
    return SweepAssignment(
        env[RUN_VARIABLE],
        env[SWEEP_VARIABLE],
        env["WANDB_PROJECT"],
        env.get("WANDB_ENTITY") or None,
        _sampled_parameters(env.get(PARAMETERS_VARIABLE)),
    )


def prepare_environment(folder: Path | None = None) -> None:
    """Prepare the environment for W&B's client. Call it before the client first reads it.

    By an agent's variables the client would take any run for the assigned one, also in other processes that the agent's
    command starts. By another process's SERVICE it would use that process's helper, which ends with that process.

    Args:
        folder: Where the client and its helper keep copies of what they send, and logs, in a folder of their own: by
            default in the home directory, whose quota they would fill. None for the last one, or a temporary one. What
            the user has set stays.
    """
    for name in (SWEEP_VARIABLE, RUN_VARIABLE, PARAMETERS_VARIABLE, SERVICE_VARIABLE):
        os.environ.pop(name, None)
    for name, of_all in FOLDER_VARIABLES.items():
        given = os.environ.get(name, "")
        is_inherited = CLIENT_FOLDER in given and client_folder_name() not in given
        if is_inherited or os.environ.keys().isdisjoint({name, of_all}):
            os.environ[name] = str(_temporary_folder())
        if folder is not None and client_folder_name() in os.environ.get(name, ""):
            os.environ[name] = str(folder / client_folder_name())


def clear_client_folder(folder: Path) -> None:
    """Delete what W&B's client kept in ``folder``, also in a process that was killed. It keeps the rest elsewhere."""
    for kept in folder.glob(f"{CLIENT_FOLDER}-*"):
        shutil.rmtree(kept, ignore_errors=True)
    prepare_environment(_temporary_folder().parent)


def client_folder_name() -> str:
    """Return the name of the folders that this process gives W&B's client."""
    return f"{CLIENT_FOLDER}-{os.getpid()}"


@functools.cache
def _temporary_folder() -> Path:
    parent = Path(tempfile.mkdtemp(prefix=f"{CLIENT_FOLDER}-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    return parent / client_folder_name()


def _sampled_parameters(path: str | None) -> dict[str, object]:
    try:
        parameters = yaml.safe_load(Path(path or "").read_text())
        return {str(name): entry["value"] for name, entry in parameters.items() if name != "wandb_version"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise UserError(
            f"{PARAMETERS_VARIABLE}={path}: not the settings that W&B's agent writes there ({error})"
        ) from None
