"""``runyard cancel``: stop a run after it has saved a checkpoint."""

from __future__ import annotations

import argparse

from runyard.cli.parser import add_run_argument
from runyard.errors import ExitCode, UserError

HELP = "save a checkpoint and stop a run; its job is not requeued"
EXAMPLE = "runyard cancel @last"
CANCEL_DETAILS = """
A pending job is removed from the queue. A running job receives SIGTERM: its tasks save at the next step and exit.
A job that has not ended after --wait-s seconds is killed with scancel.
Exit code: 0 the run stopped; 1 it was killed, or is still running; 2 there is nothing to cancel."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{HELP}\n{CANCEL_DETAILS}"
    add_run_argument(parser)
    parser.add_argument("--wait-s", type=float, default=120, metavar="S", help="seconds it has to save (default: 120)")
    parser.add_argument("--json", action="store_true", help="print how it ended as JSON, and nothing else")


def run(args: argparse.Namespace) -> int:
    import dataclasses
    import json
    import sys

    from rich.console import Console

    from runyard.cluster.monitor.cancel import cancel
    from runyard.runs.store import find_run_dir
    from runyard.runs.summary import RunSummary

    if not args.wait_s >= 0:
        raise UserError(f"--wait-s {args.wait_s:g}: expected 0 seconds or more")
    summary = RunSummary(find_run_dir(args.run, args.runs_dir))
    result = cancel(summary, args.wait_s, Console(stderr=True, highlight=False, soft_wrap=True))
    if args.json:
        print(json.dumps({"run": summary.id, **dataclasses.asdict(result)}))
    else:
        print(f"run {summary.id}: {result.message}", file=sys.stdout if result.clean else sys.stderr)
    return 0 if result.clean else ExitCode.FAILED
