"""``runyard status``: show the status of runs."""

from __future__ import annotations

import argparse

from runyard.cli.parser import add_runs_dir
from runyard.errors import ExitCode, UserError

HELP = "show runs: state and reason, step, accuracy, throughput, time left"
EXAMPLE = "runyard status -w"
STATUS_DETAILS = """
States: waiting (in the queue, or not submitted), starting, running, stopping, finished, interrupted (saved, can be
resumed), failed, killed (ended without recording why), cancelled, pruned (by its search), unknown (SLURM did not
answer).
Exit code: 0; with RUN, 1 if a run failed or was killed; 2 if the command is wrong or SLURM did not answer."""
DEFAULT_LINES = 44  # lines printed when the output is not a terminal


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{HELP}\n{STATUS_DETAILS}"
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a path, an id or its beginning, or @last; none: all")
    add_runs_dir(parser)
    parser.add_argument("-w", "--watch", action="store_true", help="refresh the table until Ctrl-C")
    parser.add_argument("--all", action="store_true", help="all runs, and not only the newest that fit the terminal")
    parser.add_argument("--sweep", metavar="ID", help="the points of one sweep only: its id or its beginning, or @last")
    parser.add_argument("--json", action="store_true", help="print all runs' raw values as JSON, and nothing else")


def run(args: argparse.Namespace) -> int:
    import json
    import sys
    from pathlib import Path

    from rich.console import Console

    from runyard.cluster.monitor import status
    from runyard.runs.store import find_run_dir

    if args.watch and args.json:
        raise UserError("-w and --json exclude each other", "call `runyard status --json` again for new values")
    if args.runs and (args.sweep or args.all):
        raise UserError(
            f"{args.runs[0]} and {'--sweep' if args.sweep else '--all'} exclude each other",
            "name runs, or give --all or --sweep",
        )
    directories = [find_run_dir(reference, args.runs_dir) for reference in args.runs]
    view = status.StatusView(Path(args.runs_dir), directories, args.sweep)
    console = Console(highlight=False)
    lines = None if args.all else console.height if console.is_terminal else DEFAULT_LINES
    if args.json:
        print(json.dumps([status.as_json(run_status) for run_status in view.statuses], indent=1))
    elif args.watch:
        try:
            status.watch(view, console, lines)
        except KeyboardInterrupt:
            return 0
    else:
        console.print(view.table(console.width, lines), soft_wrap=not console.is_terminal)
    for message in (*view.unreadable, *view.problems):
        print(f"runyard: {message}", file=sys.stderr)
    if view.problems:
        return ExitCode.USER_ERROR
    return ExitCode.FAILED if directories and any(s.state in ("failed", "killed") for s in view.statuses) else 0
