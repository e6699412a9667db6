"""``runyard cancel``: end a run's job so that what it learned is kept."""

from __future__ import annotations

import argparse

from runyard.cli.parser import add_run_argument
from runyard.errors import FAILED, UserError

HELP = "ask a run to save and stop; it is not put back into the queue"
EXAMPLE = "runyard cancel @last"
CANCEL_DETAILS = """
A job that waits is taken off the queue. One that runs is sent SIGTERM: its tasks save at the next step and end.
What has not ended after --wait-s seconds is ended by scancel.
Exit code: 0 it ended as asked; 1 it had to be ended by force, or has not ended; 2 there is nothing to cancel."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{HELP}\n{CANCEL_DETAILS}"
    add_run_argument(parser)
    parser.add_argument("--wait-s", type=float, default=120, metavar="S", help="time it has to save; default: 120")
    parser.add_argument("--json", action="store_true", help="print how it ended as JSON, and nothing else")


def run(args: argparse.Namespace) -> int:
    import dataclasses
    import json
    import sys
    from pathlib import Path

    from rich.console import Console

    from runyard.cluster.monitor.cancel import cancel
    from runyard.runs.run import Run
    from runyard.runs.summary import read_run_summary

    if not args.wait_s >= 0:
        raise UserError(f"--wait-s {args.wait_s:g}: expected 0 seconds or more")
    summary = read_run_summary(Path(Run.find_path(args.run, args.runs_dir)))
    result = cancel(summary, args.wait_s, Console(stderr=True, highlight=False, soft_wrap=True))
    if args.json:
        print(json.dumps({"run": summary.id, **dataclasses.asdict(result)}))
    else:
        print(f"run {summary.id}: {result.words}", file=sys.stdout if result.clean else sys.stderr)
    return 0 if result.clean else FAILED
