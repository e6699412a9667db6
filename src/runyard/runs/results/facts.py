"""One run's history, read once from its journal for the report's figures and page."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from runyard.files import explaining_unreadable, read_within
from runyard.runs import journal
from runyard.runs.events import Row, WarningEvent, finite_or_none, parse_event
from runyard.runs.results.history import class_names, confusion_matrix
from runyard.runs.run import Run
from runyard.runs.state import JournalState, RunState, state_on_disk
from runyard.runs.summary import read_progress


@dataclass(frozen=True)
class ReportData:
    """A run's history. Accuracies are fractions from 0 to 1, losses are in nats, times in seconds.

    Attributes:
        epochs: The ``epoch`` rows, one per epoch, in rising order.
        start_rows: The ``start`` rows in order; all but the first are restarts.
        stop_rows: For each start the ``stop`` row that ended it, or None if the process ended without writing one.
        state, message: As far as the directory shows them (``state_on_disk``).
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
    state: RunState
    message: str
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
        """The state, and a sentence that says what it means for the numbers ("" if the run is finished)."""
        if self.state is RunState.WAITING and not self.start_rows:
            return self.state, "This run has not started: its journal has no start row."
        done = f"{self.epochs[-1]['epoch'] if self.epochs else 0} of {self.run.config.epochs} epochs"
        message = f": {self.message}" if self.message else "."
        sentences = {
            RunState.FINISHED: "",
            RunState.FAILED: f"This run failed after {done}{message}",
            RunState.INTERRUPTED: f"This run was interrupted after {done}; "
            "a resume continues from its last checkpoint.",
            RunState.WAITING: f"This run is waiting, after {done}{message}",
            RunState.RUNNING: f"This run is not finished: {done} so far. It is still running, or it was killed.",
        }
        return self.state, sentences.get(self.state, f"This run is not finished: {done} so far{message}")

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


def load_report_data(run: Run) -> ReportData:
    """Read the history of a run. Missing and damaged parts are left out and raise no error.

    Raises:
        UserError: the journal is there and cannot be read.
    """
    with explaining_unreadable(run.journal_path):
        rows, broken = journal.read_journal(run.journal_path)
    events = [parse_event(row) for row in rows]
    status = JournalState.of(events)
    last_sign = max((event.t for event in events if event.t == event.t), default=0.0)
    last_sign = max(last_sign, read_progress(run.path).get("t", 0.0))
    state, message = state_on_disk(status, pruned=run.record.get("pruned") is True, last_sign=last_sign)
    start_rows = [start.row for start in status.starts]
    stop_rows = [None if stop is None else stop.row for stop in status.stops]
    final = status.final.row if status.final is not None else {}
    confusion = confusion_matrix(final.get("confusion"))
    classes = _classes(run, final, confusion)
    epochs = [row for row in journal.epochs(rows) if row["epoch"] >= 1]
    warnings = list(dict.fromkeys(event.message for event in events if isinstance(event, WarningEvent)))
    return ReportData(run, epochs, start_rows, stop_rows, state, message, final, warnings, broken, classes, confusion)


def _classes(run: Run, final: Row, confusion: np.ndarray | None) -> list[str]:
    names = final.get("classes")
    if not isinstance(names, list):
        try:
            names = json.loads(read_within(run.path, "data.json")).get("classes")
        except (OSError, ValueError, AttributeError):
            names = None
    names = [str(name) for name in names] if isinstance(names, list) else []
    return names if confusion is None else list(class_names(names, len(confusion)))
