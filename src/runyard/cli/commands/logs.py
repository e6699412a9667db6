"""``runyard logs``: print a run's output from all its jobs and restarts."""

from __future__ import annotations

import argparse

from runyard.cli.parser import add_run_argument
from runyard.errors import ExitCode, UserError

HELP = "print the output of a run's tasks, from all its jobs and restarts"
EXAMPLE = "runyard logs -f @last"
EXIT_CODES = {
    "finished": ExitCode.DONE,
    "interrupted": ExitCode.INTERRUPTED,
    "pruned": ExitCode.INTERRUPTED,
    "cancelled": ExitCode.INTERRUPTED,
    "waiting": ExitCode.USER_ERROR,
}
LOGS_DETAILS = """
Exit code: 0; with -f, 0 finished, 1 failed or killed, 130 interrupted, pruned, cancelled, or Ctrl-C (the run goes on);
2 a wrong command."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{HELP}\n{LOGS_DETAILS}"
    add_run_argument(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="follow until the run ends, across restarts")
    parser.add_argument("-n", "--lines", type=int, metavar="N", help="start with the last N lines (default: all)")
    ranks = parser.add_mutually_exclusive_group()
    ranks.add_argument("--rank", type=int, default=0, metavar="N", help="print the output of this rank (default: 0)")
    ranks.add_argument("--all-ranks", action="store_true", help="print all ranks, each line prefixed with [rank]")
    parser.add_argument("--err", action="store_true", help="standard error instead of standard output")
    parser.add_argument("--json", action="store_true", help="one JSON object per line, and nothing else")


def run(args: argparse.Namespace) -> int:
    import sys
    from collections import deque

    from runyard.cluster.monitor import logs
    from runyard.cluster.monitor.run_status import run_status
    from runyard.runs.store import find_run_dir
    from runyard.runs.summary import RunSummary

    if args.lines is not None and args.lines < 0:
        raise UserError(f"--lines {args.lines}: expected 0 or more")
    summary = RunSummary(find_run_dir(args.run, args.runs_dir))
    run_logs = logs.Logs(summary, None if args.all_ranks else args.rank, "err" if args.err else "out")
    printer = logs.Printer(sys.stdout, args.all_ranks, args.json)
    if not args.follow:
        printer.show(deque(run_logs.read_new(), args.lines))
        if not run_logs.found:
            raise UserError(f"run {summary.id} has no such log yet", f"its state: {run_status(summary).message}")
        return 0
    end = logs.follow_logs(run_logs, printer, sys.stderr, args.lines)
    print(f"runyard: run {summary.id}: {end.message}", file=sys.stderr)
    return EXIT_CODES.get(end.state, ExitCode.FAILED)
