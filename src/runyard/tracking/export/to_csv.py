"""CSV: ``ID.csv`` with a line for each epoch, and ``runs.csv`` with a line for each run; numbers in full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from runyard.files import write_atomic
from runyard.runs.results.history import RunHistory
from runyard.tracking.export.rows import export_metadata, format_value, outcome


def export_csv(run: RunHistory, folder: Path) -> Path:
    """Write the epochs of ``run`` under the journal's names; what was not measured is empty. Returns the file."""
    names = list(run.series)
    columns = [run.series[name].tolist() for name in names]
    lines = [[_number(value) for value in line] for line in zip(*columns, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{run.id}.csv", _text([names, *lines]))
    return folder / f"{run.id}.csv"


def export_table(runs: Sequence[RunHistory], folder: Path) -> Path:
    """Write ``runs.csv``: the result, the metadata and the settings of each run. Returns the file."""
    rows = [
        {"run": run.id, "name": run.name, "seed": run.seed, "epochs_done": run.epochs_done, "message": run.message}
        | outcome(run)
        | export_metadata(run)
        | {name: format_value(value) for name, value in run.settings.items()}
        for run in runs
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    write_atomic(folder / "runs.csv", _text([names, *([row.get(name, "") for name in names] for row in rows)]))
    return folder / "runs.csv"


def _number(value: float) -> float | str:
    if value != value:
        return ""
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _text(lines: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()
