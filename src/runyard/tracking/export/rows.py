"""The data that is exported of a run: the same for every program, and under the same names as at W&B."""

from __future__ import annotations

import json

import numpy as np

from runyard.runs.results.history import RunHistory
from runyard.tracking.wandb.history import WANDB_NAMES

MAX_UNIX_TIME = 1e11  # unix seconds; a later time is a damaged record
MAX_EXACT_INT = 2**53  # a float64 represents every integer up to here


def export_metrics(run: RunHistory) -> dict[str, np.ndarray]:
    """Return float64 [epochs measured] by name, as train/loss. What was not measured is NaN, or left out if never."""
    metrics = {name: run.metric(key) for key, name in WANDB_NAMES.items()}
    return {name: values for name, values in metrics.items() if np.isfinite(values).any()}


def created_time(run: RunHistory) -> float:
    """Return when the run was created, in unix seconds; 0 if its record has no valid time."""
    return run.created if 0 <= run.created <= MAX_UNIX_TIME else 0.0


def points(run: RunHistory) -> tuple[list[float], list[int]]:
    """Return the time, in unix seconds, and the step of each measured epoch.

    Where the journal lacks one of them, ``created_time`` or the number of the epoch stands in for it.
    """
    times, steps, epochs = run.metric("t"), run.metric("step"), run.series["epoch"]
    has_time = (times >= 0) & (times <= MAX_UNIX_TIME)  # False for NaN
    has_step = (steps >= 0) & (steps <= MAX_EXACT_INT)
    times, steps = np.where(has_time, times, created_time(run)), np.where(has_step, steps, epochs)
    return times.tolist(), steps.astype(np.int64).tolist()


def outcome(run: RunHistory) -> dict[str, float]:
    """Return the run's result in a few numbers; those that are not known are left out."""
    numbers = {
        "top1": run.last_top1,
        "top1_best": run.best_top1,
        "restarts": float(len(run.restarts)),
        "gpu_hours": run.gpu_hours,
        "core_hours": run.core_hours,
        "parameters": float("nan") if run.parameters is None else float(run.parameters),
    }
    return {name: value for name, value in numbers.items() if np.isfinite(value)}


def export_metadata(run: RunHistory) -> dict[str, str]:
    """Return what is known of the run besides its settings and metrics."""
    known: dict[str, object] = {
        "state": run.state,
        "sweep": run.sweep,
        "tags": ",".join(run.tags),
        "code_sha256": run.code_sha256,
        "data": run.data_name,
        "data_sha256": run.data_sha256,
        "device": run.device,
        "directory": str(run.directory),
    }
    return {name: str(value) for name, value in known.items() if value not in (None, "")}


def format_value(value: object) -> str:
    """Return a setting's value as JSON. Text stays as it is; what JSON does not have, as YAML's dates, becomes text."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
