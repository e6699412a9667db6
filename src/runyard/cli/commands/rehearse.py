"""``runyard rehearse``: run the experiment on a temporary local SLURM and interrupt it on purpose."""

from __future__ import annotations

import argparse
import sys

from runyard.cli.parser import add_overrides
from runyard.errors import ExitCode

HELP = "try a submission and its interruptions on a temporary SLURM on this machine"
EXAMPLE = "runyard rehearse experiment=starter cluster.nodes=2 cluster.tasks_per_node=2"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON; progress goes to stderr")


def run(args: argparse.Namespace) -> int:
    from runyard.cluster.rehearsal.rehearse import Rehearsal, print_result

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    result = Rehearsal(args.overrides, report).run()
    print_result(result, as_json=args.json)
    return 0 if result.equal else ExitCode.FAILED
