"""What is exported of a run: the same for every program, by the names that W&B has too."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from runyard.runs.history import History
from runyard.tracking.wandb.history import NAMES

LATEST = 1e11  # unix seconds; no machine's clock has gone further
MOST = 2**53  # beyond, floats lose count
SPENT = {"gpu_hours": "cost/gpu_hours", "core_hours": "cost/core_hours"}


def measures(run: History) -> dict[str, np.ndarray]:
    """float64 [epochs measured] by name, as train/loss; NaN where not measured, and none that is so everywhere."""
    found = {name: run.measure(key) for key, name in {**NAMES, **SPENT}.items()}
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def began(run: History) -> float:
    """When the run was created, unix seconds; 0 where its record has no time."""
    return run.created if 0 <= run.created <= LATEST else 0.0


def points(run: History) -> tuple[list[float], list[int]]:
    """Each measured epoch's time, unix seconds, and step; for what the journal lacks, ``began`` and the epoch."""
    times, steps, epochs = run.measure("t"), run.measure("step"), run.series["epoch"]
    timed, counted = (times >= 0) & (times <= LATEST), (steps >= 0) & (steps <= MOST)  # NaN is neither
    return np.where(timed, times, began(run)).tolist(), np.where(counted, steps, epochs).astype(np.int64).tolist()


def outcome(run: History) -> dict[str, float]:
    """The run's result in a few numbers; those that are not known are left out."""
    numbers = {
        "top1": run.last,
        "top1_best": run.best,
        "restarts": float(len(run.restarts)),
        "gpu_hours": run.gpu_hours,
        "core_hours": run.core_hours,
        "parameters": float("nan") if run.parameters is None else float(run.parameters),
    }
    return {name: value for name, value in numbers.items() if np.isfinite(value)}


def facts(run: History) -> dict[str, str]:
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


def written(value: Any) -> str:
    """A setting's value as JSON, text as it is; what JSON has no word for, as YAML's dates, as text."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
