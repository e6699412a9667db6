"""One run's history, read once from its journal for the report's figures and page."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from runyard.files import read_within
from runyard.runs import journal
from runyard.runs.journal import Row
from runyard.runs.run import Run


@dataclass(frozen=True)
class ReportData:
    """A run's history. Accuracies are fractions from 0 to 1, losses are in nats, times in seconds.

    Attributes:
        epochs: The ``epoch`` rows, one per epoch, in rising order.
        start_rows: The ``start`` rows in order; all but the first are restarts.
        stop_rows: For each start the ``stop`` row that ended it, or None if the process ended without writing one.
        final_row: The last ``final`` row, or an empty one.
        warnings: The run's warnings in order, each once.
        broken: Number of journal lines that could not be read.
        classes: Class names in label order; empty if they are not known.
        confusion: int64 [classes, classes], rows true, columns predicted; None before the final evaluation.
    """

    run: Run
    epochs: list[Row]
    start_rows: list[Row]
    stop_rows: list[Row | None]
    final_row: Row
    warnings: list[str]
    broken: int
    classes: list[str]
    confusion: np.ndarray | None

    @property
    def restarts(self) -> int:
        return max(0, len(self.start_rows) - 1)

    @property
    def has_validation(self) -> bool:
        return any(finite_or_none(row, key) is not None for row in self.epochs for key in ("val_loss", "val_top1"))

    @property
    def selection_metric(self) -> str:
        """The metric that decides which epoch is best: on the validation set if there is one, else on the test set."""
        return "val_top1" if self.has_validation else "test_top1"

    @property
    def status(self) -> tuple[str, str]:
        """One word, and a sentence that says what it means for the numbers ("" if the run is finished)."""
        last = self.stop_rows[-1] if self.stop_rows else None
        reason = str(last.get("reason")) if last else ""
        done = f"{self.epochs[-1]['epoch'] if self.epochs else 0} of {self.run.config.epochs} epochs"
        message = str(last.get("message") or "") if last else ""
        if self.final_row and reason in ("", "finished"):
            return "finished", ""
        if reason == "failed":
            return reason, f"This run failed after {done}" + (f": {message}" if message else ".")
        if reason == "interrupted":
            return reason, f"This run was interrupted after {done}; a resume continues from its last checkpoint."
        if not self.start_rows:
            return "not started", "This run has not started: its journal has no start row."
        return "unfinished", f"This run is not finished: {done} so far. It is still running, or it was killed."

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return the epochs in which a metric was measured, and its values there."""
        points = [(row["epoch"], value) for row in self.epochs if (value := finite_or_none(row, key)) is not None]
        return [epoch for epoch, _ in points], [value for _, value in points]

    def last(self, key: str) -> float | None:
        """Return the newest value of a metric, or None if it was never measured."""
        values = self.series(key)[1]
        return values[-1] if values else None

    def best(self) -> tuple[float | None, int | None]:
        """Return the best top-1 by ``selection_metric`` and its epoch: from the final row, or else the best so far."""
        if finite_or_none(self.final_row, "top1_best") is not None:
            epoch = finite_or_none(self.final_row, "best_epoch")
            return finite_or_none(self.final_row, "top1_best"), None if epoch is None else int(epoch)
        epochs, values = self.series(self.selection_metric)
        index = max(range(len(values)), key=values.__getitem__, default=None)
        return (None, None) if index is None else (values[index], epochs[index])

    def restart_epochs(self) -> list[float]:
        """Return where each restart resumed, in epochs done (2.5 is half-way through the third)."""
        per_epoch = next(
            (row["step"] / row["epoch"] for row in reversed(self.epochs) if finite_or_none(row, "step")), None
        )
        steps = [finite_or_none(row, "step") for row in self.start_rows[1:]]
        return [step / per_epoch for step in steps if step is not None and per_epoch]


def finite_or_none(row: Row, key: str) -> float | None:
    """Return the finite number under ``key``, or None."""
    value = row.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return None


def load_report_data(run: Run) -> ReportData:
    """Read the history of a run. Missing and damaged parts are left out and raise no error."""
    rows, broken = journal.read_journal(run.path / "metrics.jsonl")
    start_rows: list[Row] = []
    stop_rows: list[Row | None] = []
    for row in rows:
        if row["event"] == "start":
            start_rows.append(row)
            stop_rows.append(None)
        elif row["event"] == "stop" and stop_rows and (stop_rows[-1] or {}).get("reason") != "finished":
            stop_rows[-1] = row  # a failure after training has finished does not make the run unfinished
    final = next((row for row in reversed(rows) if row["event"] == "final"), {})
    confusion = _matrix(final.get("confusion"))
    classes = _classes(run, final, confusion)
    epochs = [row for row in journal.epochs(rows) if row["epoch"] >= 1]
    warnings = list(dict.fromkeys(str(row.get("message")) for row in rows if row["event"] == "warning"))
    return ReportData(run, epochs, start_rows, stop_rows, final, warnings, broken, classes, confusion)


def _matrix(cells: Any) -> np.ndarray | None:
    try:
        matrix = np.array(cells)
    except ValueError:
        return None
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0
    return matrix.astype(np.int64) if square and matrix.dtype.kind in "iu" and matrix.min() >= 0 else None


def _classes(run: Run, final: Row, confusion: np.ndarray | None) -> list[str]:
    names = final.get("classes")
    if not isinstance(names, list):
        try:
            names = json.loads(read_within(run.path, "data.json")).get("classes")
        except (OSError, ValueError, AttributeError):
            names = None
    names = [str(name) for name in names] if isinstance(names, list) else []
    if confusion is not None and len(names) != len(confusion):
        names = [f"class {label}" for label in range(len(confusion))]
    return names
