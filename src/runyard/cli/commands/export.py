"""``runyard export``: export runs to TensorBoard, MLflow or CSV."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from runyard.cli.parser import add_selection
from runyard.errors import UserError

if TYPE_CHECKING:
    from runyard.runs.results.history import RunHistory

HELP = "write runs for TensorBoard, MLflow, or as CSV"
EXAMPLE = "runyard export tensorboard --all    (then: tensorboard --logdir export/tensorboard)"
EXPORT_TARGETS = ("tensorboard", "mlflow", "csv")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", choices=EXPORT_TARGETS, help="export format")
    add_selection(parser)
    parser.add_argument("--to", help="folder, or for MLflow also its tracking URI (default: export/PROGRAM)")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import track

    from runyard.analysis.compare.choose import select_runs

    to = args.to or f"export/{args.program}"
    selection = select_runs(args.runs, everything=args.all, tag=args.tag, sweep=args.sweep, runs_dir=args.runs_dir)
    runs, duplicate_notes = _unique_runs(selection.runs)
    for note in [*selection.notes, *duplicate_notes]:
        print(f"runyard: {note}", file=sys.stderr)
    console = Console(stderr=True, quiet=args.json or not sys.stderr.isatty())
    try:
        write = _writer(args.program, to)
        written = [write(history) for history in track(runs, args.program, console=console, transient=True)]
        if args.program == "csv":
            from pathlib import Path

            from runyard.tracking.export.to_csv import export_table

            written.append(str(export_table(runs, Path(to))))
    except OSError as error:
        raise UserError(f"--to {to}: cannot be written ({error.strerror})", "give another folder") from None
    if args.json:
        print(json.dumps({"program": args.program, "to": to, "written": written}))
        return
    print(f"{len(runs)} runs in {to}{_next_step(args.program, to)}")


def _unique_runs(runs: list[RunHistory]) -> tuple[list[RunHistory], list[str]]:
    """Keep one run per id, since the id names the output. Returns the runs and a note for each dropped duplicate."""
    first: dict[str, RunHistory] = {}
    duplicates = [run for run in runs if first.setdefault(run.id, run) is not run]
    return list(first.values()), [
        f"skipped {run.directory}: run {run.id} is exported from {first[run.id].directory}" for run in duplicates
    ]


def _writer(program: str, to: str) -> Callable[[RunHistory], str]:
    """Return the function that exports one run and returns the output path.

    Raises:
        UserError: the program's library is not installed.
    """
    from pathlib import Path

    try:
        if program == "tensorboard":
            from runyard.tracking.export import to_tensorboard

            return lambda run: str(to_tensorboard.export_tensorboard(run, Path(to)))
        if program == "mlflow":
            from runyard.tracking.export.to_mlflow import MlflowStore

            return MlflowStore(to).export
    except ModuleNotFoundError as error:
        raise UserError(f"{program}: {error.name} is not installed", "pip install 'runyard[export]'") from None
    from runyard.tracking.export import to_csv

    return lambda run: str(to_csv.export_csv(run, Path(to)))


def _next_step(program: str, to: str) -> str:
    if program == "tensorboard":
        return f"; view them with: tensorboard --logdir {shlex.quote(to)}"
    if program == "mlflow" and "://" not in to:
        needs = "" if find_spec("flask") else " (which needs pip install mlflow: mlflow-skinny only writes)"
        return f"; view them with: mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{to}/mlflow.db')}{needs}"
    return ""
