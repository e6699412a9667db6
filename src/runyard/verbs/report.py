"""``runyard report``: write a run's figures and page."""

from __future__ import annotations

import argparse

from runyard.arguments import of_a_run

HELP = "write a run's figures and page"
EXAMPLE = "runyard report @last"


def arguments(parser: argparse.ArgumentParser) -> None:
    of_a_run(parser)


def run(args: argparse.Namespace) -> None:
    from runyard.report.page import write_report
    from runyard.run import Run

    print(write_report(Run.find(args.run, args.runs_dir)))
