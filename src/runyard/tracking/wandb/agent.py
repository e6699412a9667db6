"""What W&B's sweep agent tells the command that it starts: which run of which sweep that is to be, and what was drawn.

`runyard submit` notes it in the new run's ``run.json``. From then on the run knows its place at W&B by itself: on
another machine, after a restart, or when `runyard sync` sends it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runyard.config.schema import Config
from runyard.errors import UserError
from runyard.files import read_within
from runyard.runs.run import Run

SWEEP_VARIABLE, RUN_VARIABLE, PARAMETERS_VARIABLE = "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"
SERVICE_VARIABLE = "WANDB_SERVICE"  # set by W&B's client in a process that has a helper, for that process's children


@dataclass(frozen=True)
class SweepAssignment:
    """A run of a sweep at W&B that an agent was given.

    Attributes:
        run: Its id.
        sweep: The sweep's id.
        entity: None where W&B is to take the user's own.
        drawn: The settings that W&B drew, by their dotted names.
    """

    run: str
    sweep: str
    project: str
    entity: str | None
    sampled: dict[str, Any]

    def overrides(self, given: list[str], config: Config) -> list[str]:
        """What besides the ``given`` overrides, which make ``config``, lets the run appear where the agent expects it.

        Raises:
            UserError: those say something of it already; W&B would hear nothing of the run, and its agent would draw
                further settings without a result; or both SLURM and W&B would start it again.
        """
        if config.tracking.mode in ("none", "offline"):
            raise UserError(
                f"tracking.mode={config.tracking.mode}: W&B's sweep {self.sweep} would hear nothing of this run; "
                "add tracking=online to the sweep's command"
            )
        if config.cluster.launcher == "slurm" and config.cluster.requeue:
            raise UserError(
                "cluster.requeue=true: W&B hands out an interrupted run of a sweep again by itself; "
                "add cluster.requeue=false to the sweep's command"
            )
        place = {"tracking.project": self.project, "tracking.entity": self.entity}
        for override in given:
            if override.lstrip("+").partition("=")[0] in place:
                raise UserError(f"{override}: a run of a W&B sweep belongs to the sweep's project; leave this out")
        return [f"{name}={json.dumps(value)}" for name, value in place.items()]

    def existing_run(self, runs_dir: Path | str) -> Run | None:
        """The run's directory, where W&B hands out again what it handed out before: after a preemption."""
        for record in sorted(Path(runs_dir).glob("[!.]*/run.json")):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # another run's damage is not ours
                noted = json.loads(read_within(record.parent, record.name)).get("wandb") or {}
                if (noted.get("id"), noted.get("sweep")) == (self.run, self.sweep):
                    return Run.open(record.parent)
        return None

    @property
    def record(self) -> dict[str, Any]:
        """As ``run.json`` keeps it."""
        return {"id": self.run, "sweep": self.sweep, "drawn": self.sampled}


def sweep_assignment(env: Mapping[str, str]) -> SweepAssignment | None:
    """What the agent said that started this command, None where none did.

    Raises:
        UserError: it said half of it.
    """
    if not env.get(SWEEP_VARIABLE):  # a run's id alone is somebody's own setting
        return None
    for name, fix in (
        (RUN_VARIABLE, f"unset {SWEEP_VARIABLE}"),
        ("WANDB_PROJECT", "start it as: wandb agent ENTITY/PROJECT/SWEEP"),
    ):
        if not env.get(name):
            raise UserError(
                f"{SWEEP_VARIABLE}={env[SWEEP_VARIABLE]} is set, as W&B's agent does, and {name} is not; {fix}"
            )
    return SweepAssignment(
        env[RUN_VARIABLE],
        env[SWEEP_VARIABLE],
        env["WANDB_PROJECT"],
        env.get("WANDB_ENTITY") or None,
        _drawn(env.get(PARAMETERS_VARIABLE)),
    )


def clear_agent_environment() -> None:
    """Before W&B's client first looks: by an agent's variables it would take any run for the one that was handed out,
    also in what the agent's command starts besides; by another process's SERVICE it would speak through that process's
    helper, which ends with it."""
    for name in (SWEEP_VARIABLE, RUN_VARIABLE, PARAMETERS_VARIABLE, SERVICE_VARIABLE):
        os.environ.pop(name, None)


def _drawn(path: str | None) -> dict[str, Any]:
    try:
        said = yaml.safe_load(Path(path or "").read_text())
        return {str(name): given["value"] for name, given in said.items() if name != "wandb_version"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise UserError(
            f"{PARAMETERS_VARIABLE}={path}: not the settings that W&B's agent writes there ({error})"
        ) from None
