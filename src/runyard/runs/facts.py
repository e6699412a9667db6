"""What one run's journal says, gathered once for the figures and the page."""

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
    """A run's history. Accuracies are parts of 1, losses nats, times seconds.

    Attributes:
        epochs: The ``epoch`` rows, one per epoch, rising.
        starts: The ``start`` rows in order; all but the first are restarts.
        stops: For each start the ``stop`` row that ended it, or None where the process ended without a word.
        final: The last ``final_row`` row, or an empty one.
        warnings: What the run warned about, in order, each once.
        broken: Journal lines that could not be read.
        classes: Class names in label order; empty when the run never said.
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
        """The measure that says which epoch is best: on the validation part if there is one, else on the test set."""
        return "val_top1" if self.has_validation else "test_top1"

    @property
    def status(self) -> tuple[str, str]:
        """One word, and a sentence that says what it means for the numbers ("" when finished)."""
        last = self.stop_rows[-1] if self.stop_rows else None
        reason = str(last.get("reason")) if last else ""
        done = f"{self.epochs[-1]['epoch'] if self.epochs else 0} of {self.run.config.epochs} epochs"
        message = str(last.get("message") or "") if last else ""
        if self.final_row and reason in ("", "finished"):
            return "finished", ""
        if reason == "failed":
            return reason, f"This run failed after {done}" + (f": {message}" if message else ".")
        if reason == "interrupted":
            return reason, f"This run was interrupted after {done}; started again, it goes on from its last checkpoint."
        if not self.start_rows:
            return "not started", "This run has not started: its journal holds no start."
        return "unfinished", f"This run is not finished: {done} so far. It still runs, or it ended without a word."

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Epochs and values of one measure, where it was measured."""
        points = [(row["epoch"], value) for row in self.epochs if (value := finite_or_none(row, key)) is not None]
        return [epoch for epoch, _ in points], [value for _, value in points]

    def last(self, key: str) -> float | None:
        """The newest value of one measure."""
        values = self.series(key)[1]
        return values[-1] if values else None

    def best(self) -> tuple[float | None, int | None]:
        """Best top-1 and its epoch, by ``selection_metric``: the run's own final word, or else the highest so far."""
        if finite_or_none(self.final_row, "top1_best") is not None:
            epoch = finite_or_none(self.final_row, "best_epoch")
            return finite_or_none(self.final_row, "top1_best"), None if epoch is None else int(epoch)
        epochs, values = self.series(self.selection_metric)
        at = max(range(len(values)), key=values.__getitem__, default=None)
        return (None, None) if at is None else (values[at], epochs[at])

    def restart_epochs(self) -> list[float]:
        """Where each restart went on, in epochs done (2.5: half-way through the third)."""
        per_epoch = next(
            (row["step"] / row["epoch"] for row in reversed(self.epochs) if finite_or_none(row, "step")), None
        )
        steps = [finite_or_none(row, "step") for row in self.start_rows[1:]]
        return [step / per_epoch for step in steps if step is not None and per_epoch]


def finite_or_none(row: Row, key: str) -> float | None:
    """The finite number under ``key``, or None."""
    value = row.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return None


def load_report_data(run: Run) -> ReportData:
    """Read what the run wrote. Missing and damaged parts are left out, never raised."""
    rows, broken = journal.read_journal(run.path / "metrics.jsonl")
    starts: list[Row] = []
    stops: list[Row | None] = []
    for row in rows:
        if row["event"] == "start":
            starts.append(row)
            stops.append(None)
        elif row["event"] == "stop" and stops and (stops[-1] or {}).get("reason") != "finished":
            stops[-1] = row  # what goes wrong after training has finished does not unfinish it
    final = next((row for row in reversed(rows) if row["event"] == "final"), {})
    confusion = _matrix(final.get("confusion"))
    classes = _classes(run, final, confusion)
    epochs = [row for row in journal.epochs(rows) if row["epoch"] >= 1]
    warnings = list(dict.fromkeys(str(row.get("message")) for row in rows if row["event"] == "warning"))
    return ReportData(run, epochs, starts, stops, final, warnings, broken, classes, confusion)


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
