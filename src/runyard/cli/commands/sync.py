"""``runyard sync``: upload offline runs to Weights & Biases."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from runyard.cli.parser import add_runs_dir
from runyard.errors import ExitCode, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from runyard.runs.run import Run

HELP = "upload offline runs to Weights & Biases; safe to repeat"
EXAMPLE = "runyard sync @last    or: runyard sync --all --dry-run"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="paths, ids or their beginnings, or @last")
    parser.add_argument("--all", action="store_true", help="every run of the folder, except those with tracking=none")
    parser.add_argument("--trust", action="store_true", help="also upload runs that another user owns")
    parser.add_argument("--dry-run", action="store_true", help="show what would be uploaded without uploading")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_runs_dir(parser)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from runyard.tracking.wandb.connection import ServerError

    if bool(args.runs) == args.all:
        raise UserError("sync needs RUN… or --all, and not both", f"example: {EXAMPLE}")
    runs, unreadable = _select_runs(args)
    console = Console(stderr=True, quiet=args.json or not sys.stderr.isatty(), soft_wrap=True, highlight=False)
    results: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for index, run in enumerate(runs, 1):
        try:
            run.require_own(trusted=args.trust, instead="it would be uploaded as yours; or --trust")
            results.append(_sync_one(run, console, f"{index}/{len(runs)} {run.id}", args.dry_run))
        except UserError as error:
            if len(runs) == 1 or (isinstance(error, ServerError) and not results):
                raise  # no run is the cause
            failed[run.id] = str(error)
            continue
        if not args.json:
            print(_result_line(results[-1]), flush=True)
    if args.json:
        print(json.dumps({"runs": results, "failed": failed, "unreadable": unreadable}))
    for run_id, reason in failed.items():
        print(f"runyard: not sent: {reason if run_id in reason else f'{run_id}: {reason}'}", file=sys.stderr)
    for reason in unreadable:
        print(f"runyard: skipped: {reason}", file=sys.stderr)
    return ExitCode.FAILED if failed or unreadable else 0


def _select_runs(args: argparse.Namespace) -> tuple[list[Run], list[str]]:
    """Return the runs to upload and, with ``--all``, a message for each run that cannot be read."""
    from runyard.runs.run import Run
    from runyard.runs.store import run_dirs

    if args.runs:
        return [Run.find(reference, args.runs_dir) for reference in args.runs], []
    runs: list[Run] = []
    unreadable = []
    for directory in run_dirs(args.runs_dir):
        try:
            runs.append(Run.open(directory))
        except UserError as error:
            unreadable.append(str(error))
    if not runs and not unreadable:
        raise UserError(f"no run in {args.runs_dir}", "give --runs-dir, or make one with `runyard submit`")
    return [run for run in runs if run.config.tracking.mode != "none"], unreadable


def _sync_one(run: Run, console: Console, title: str, dry_run: bool) -> dict[str, Any]:
    """Upload one run with a progress bar. Returns a dict for `--json`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    from runyard.tracking.wandb import sync

    if sync.is_sending_live(run):
        return {"run": run.id, "action": "skipped: the run is active and uploads itself"}
    plan = sync.plan_sync(run)
    row = {
        "run": plan.run.id,
        "status": plan.status,
        "points": plan.points,
        "there": plan.on_server,
        "missing": plan.missing,
        "broken_lines": plan.damaged_lines,
    }
    if dry_run or plan.is_complete:
        return row | {"action": "nothing to send" if plan.is_complete else "would send", "sent": 0}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), SpinnerColumn())
    warnings: list[str] = []
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=max(plan.missing, 1))
        url = sync.send_missing(plan, lambda sent: bar.update(task, completed=sent), warnings.append)
    return row | {"action": "sent", "sent": plan.missing, "url": url, "warnings": warnings}


def _result_line(row: dict[str, Any]) -> str:
    if "points" not in row:
        return f"{row['run']}: {row['action']}"
    count = {"would send": f" {row['missing']} of {row['points']} points", "nothing to send": ""}.get(
        row["action"], f" {row['sent']} of {row['points']} points"
    )
    damaged = f", {row['broken_lines']} broken lines of its journal skipped" if row["broken_lines"] else ""
    line = f"{row['run']}: {row['action']}{count} ({row['status']}){damaged}"
    return "\n".join([line + (f"  {row['url']}" if row.get("url") else ""), *row.get("warnings", [])])
