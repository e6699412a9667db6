"""The numbers of a run, by the names that tables show and that --sort and --where accept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from runyard.errors import UserError
from runyard.runs.results.history import RunHistory, finite_or_nan
from runyard.runs.results.metrics import METRICS_BY_NAME, Metric

NAN = float("nan")


@dataclass(frozen=True)
class Measure:
    """A number of a run. ``value_of`` returns NaN if the run has none."""

    value_of: Callable[[RunHistory], float]
    higher_is_better: bool = False


@dataclass(frozen=True)
class TargetReached:
    """The first evaluation of a run at or above a target accuracy; infinite values if the run never reached it.

    The clock is in seconds. Hours of a device that the run did not use are NaN.
    """

    epoch: float = np.inf
    clock_s: float = np.inf
    gpu_hours: float = np.inf
    core_hours: float = np.inf


def first_at_target(run: RunHistory, target: float) -> TargetReached:
    """Return the first evaluation with a test top-1 of at least ``target``, a fraction of 1."""
    reached = np.flatnonzero(run.metric("test_top1") >= target)
    if not len(reached):
        return TargetReached()
    epoch, clock_s, gpu_hours, core_hours = (
        float(run.metric(name)[reached[0]]) for name in ("epoch", "clock_s", "gpu_hours", "core_hours")
    )
    return TargetReached(epoch, clock_s, NAN if run.cpu_only else gpu_hours, core_hours if run.core_hours else NAN)


def parse_decimal(text: str) -> float:
    """Return a number as it is written: 99.62% is the same float as 0.9962, which 99.62 / 100 is not.

    Raises:
        ValueError: the text is no number.
    """
    if not text.endswith("%"):
        return float(text)
    try:
        return float(Decimal(text[:-1]) / 100)
    except ArithmeticError:
        raise ValueError(f"{text}: no number") from None


def parse_accuracy(text: str) -> float:
    """Return an accuracy, written as 0.92 or 92%, as a fraction of 1.

    Raises:
        UserError: the text is no fraction of 1 and no percentage.
    """
    try:
        value = parse_decimal(text.strip())
    except ValueError:
        value = NAN
    if not 0 < value <= 1:
        raise UserError(f"--target {text}: expected a fraction of 1, as 0.92, or a percentage, as 92%")
    return value


def _over_epochs(metric: Metric) -> Callable[[RunHistory], float]:
    def value_of(run: RunHistory) -> float:
        values, train_s = run.metric(metric.name), run.metric("train_s")
        known = np.isfinite(values)
        match metric.over_epochs:
            case "median":
                return float(np.median(values[known])) if known.any() else NAN
            case "time_mean":
                known &= np.isfinite(train_s)
                return float(np.average(values[known], weights=train_s[known])) if train_s[known].sum() > 0 else NAN
        return float(values[known][-1]) if known.any() else NAN

    return value_of


OF_EPOCHS = {
    metric.name: Measure(_over_epochs(metric), metric.better == "higher")
    for metric in METRICS_BY_NAME.values()
    if metric.over_epochs is not None
}
MEASURES = {
    "last": Measure(lambda run: run.last_top1, True),  # test top-1
    "best": Measure(lambda run: run.best_top1, True),  # test top-1 at the best epoch
    "val": OF_EPOCHS.pop("val_top1"),
    "best_epoch": Measure(lambda run: finite_or_nan(run.best_epoch)),
    **OF_EPOCHS,
    # of the whole run, with what a restart spent after the last epoch; NaN without such a device
    "gpu_hours": Measure(lambda run: run.gpu_hours if any(s.gpus for s in run.starts) else NAN),
    "core_hours": Measure(lambda run: run.core_hours if run.core_hours else NAN),
    "restarts": Measure(lambda run: float(len(run.restarts))),
    "parameters": Measure(lambda run: finite_or_nan(run.parameters)),
    "epochs_done": Measure(lambda run: float(run.epochs_done), True),
}
TEXT_FIELDS: dict[str, Callable[[RunHistory], str | None]] = {
    "id": lambda run: run.id,
    "name": lambda run: run.name,
    "state": lambda run: run.state,
    "sweep": lambda run: run.sweep,
    "data": lambda run: run.data_name,
}
