"""What is exported of a run: the same for every program, by the names that W&B has too."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from runyard.runs.history import RunHistory
from runyard.tracking.wandb.history import WANDB_NAMES

MAX_UNIX_TIME = 1e11  # unix seconds; no machine's clock has gone further
MAX_EXACT_INT = 2**53  # beyond, floats lose count
COST_METRICS = {"gpu_hours": "cost/gpu_hours", "core_hours": "cost/core_hours"}


def export_metrics(run: RunHistory) -> dict[str, np.ndarray]:
    """float64 [epochs measured] by name, as train/loss; NaN where not measured, and none that is so everywhere."""
    found = {name: run.metric(key) for key, name in {**WANDB_NAMES, **COST_METRICS}.items()}
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def created_time(run: RunHistory) -> float:
    """When the run was created, unix seconds; 0 where its record has no time."""
    return run.created if 0 <= run.created <= MAX_UNIX_TIME else 0.0


def points(run: RunHistory) -> tuple[list[float], list[int]]:
    """Each measured epoch's time, unix seconds, and step.

    For what the journal lacks, ``created_time`` and the epoch.
    """
    times, steps, epochs = run.metric("t"), run.metric("step"), run.series["epoch"]
    timed, counted = (times >= 0) & (times <= MAX_UNIX_TIME), (steps >= 0) & (steps <= MAX_EXACT_INT)  # NaN is neither
    return np.where(timed, times, created_time(run)).tolist(), np.where(counted, steps, epochs).astype(
        np.int64
    ).tolist()


def outcome(run: RunHistory) -> dict[str, float]:
    """The run's result in a few numbers; those that are not known are left out."""
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
    """What is known of the run beside its settings and measures."""
    known: dict[str, Any] = {
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


def format_value(value: Any) -> str:
    """A setting's value as JSON, text as it is; what JSON has no word for, as YAML's dates, as text."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
