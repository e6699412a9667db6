"""``runyard report``: write a run's figures and page."""

from __future__ import annotations

import argparse
import json

from runyard.cli.parser import add_run_argument

HELP = "write a run's figures and page"
EXAMPLE = "runyard report @last"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    parser.add_argument("--out", metavar="DIR", help="write into this directory; by default into report/ in the run")
    parser.add_argument("--trust", action="store_true", help="also write into another user's directory")
    parser.add_argument("--json", action="store_true", help="print run and page as JSON")


def run(args: argparse.Namespace) -> None:
    from pathlib import Path

    from runyard.analysis.report.page import write_report
    from runyard.runs.run import Run

    run = Run.find(args.run, args.runs_dir)
    if args.out is None:
        instead = "its report would be written there: give --out DIR, or --trust"
        run.require_own(trusted=args.trust, instead=instead)
        run.set_umask()
    page = write_report(run, None if args.out is None else Path(args.out))
    print(json.dumps({"run": run.id, "report": str(page)}) if args.json else page)
