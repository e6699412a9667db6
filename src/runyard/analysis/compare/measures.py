"""The metrics of a run, by the names that tables show and that --sort and --where accept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from runyard.errors import UserError
from runyard.runs.history import RunHistory, finite_or_nan

NAN = float("nan")


@dataclass(frozen=True)
class Metric:
    """A number of a run. ``value_of`` returns NaN if the run has none."""

    doc: str
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


def parse_accuracy(text: str, where: str) -> float:
    """Return an accuracy, written as 0.92 or 92%, as a fraction of 1.

    Raises:
        UserError: the text is no fraction of 1 and no percentage.
    """
    try:
        value = parse_decimal(text.strip())
    except ValueError:
        value = NAN
    if not 0 < value <= 1:
        raise UserError(f"{where} {text}: expected a fraction of 1, as 0.92, or a percentage, as 92%")
    return value


def _newest(name: str) -> Callable[[RunHistory], float]:
    def of(run: RunHistory) -> float:
        values = run.metric(name)
        values = values[np.isfinite(values)]
        return float(values[-1]) if len(values) else NAN

    return of


def _median_throughput(run: RunHistory) -> float:
    values = run.metric("images_per_s")
    return float(np.nanmedian(values)) if np.isfinite(values).any() else NAN


def _mean_data_wait(run: RunHistory) -> float:
    wait, train_s = run.metric("data_wait_pct"), run.metric("train_s")
    good = np.isfinite(wait) & np.isfinite(train_s)
    return float(np.average(wait[good], weights=train_s[good])) if train_s[good].sum() > 0 else NAN


METRICS = {
    "last": Metric("test top-1 at the last evaluation", lambda run: run.last_top1, True),
    "best": Metric("test top-1 at the best epoch", lambda run: run.best_top1, True),
    "val": Metric("top-1 on the held-out part at the last epoch", _newest("val_top1"), True),
    "best_epoch": Metric("the best epoch", lambda run: finite_or_nan(run.best_epoch)),
    "train_loss": Metric("training loss of the last epoch, nats", _newest("train_loss")),
    "test_loss": Metric("test loss at the last evaluation, nats", _newest("test_loss")),
    "images_per_s": Metric("training images per second, median over epochs", _median_throughput, True),
    "gpu_hours": Metric(
        "time under way × GPUs, h", lambda run: run.gpu_hours if any(s.gpus for s in run.starts) else NAN
    ),
    "core_hours": Metric(
        "time under way × cores of a run without a GPU, h", lambda run: run.core_hours if run.core_hours else NAN
    ),
    "clock_s": Metric("training's own clock, s", _newest("clock_s")),
    "restarts": Metric("starts after the first", lambda run: float(len(run.restarts))),
    "data_wait_pct": Metric("part of training time spent waiting for data, %", _mean_data_wait),
    "parameters": Metric("trainable parameters", lambda run: finite_or_nan(run.parameters)),
    "epochs_done": Metric("epochs measured", lambda run: float(run.epochs_done), True),
}
TEXT_FIELDS: dict[str, Callable[[RunHistory], str | None]] = {
    "id": lambda run: run.id,
    "name": lambda run: run.name,
    "state": lambda run: run.state,
    "sweep": lambda run: run.sweep,
    "data": lambda run: run.data_name,
}
