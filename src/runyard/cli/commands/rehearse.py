"""``runyard rehearse``: the experiment on a throwaway SLURM on this machine, interrupted on purpose."""

from __future__ import annotations

import argparse
import sys

from runyard.cli.parser import add_overrides
from runyard.errors import FAILED

HELP = "try a submission and its interruptions on a throwaway SLURM on this machine"
EXAMPLE = "runyard rehearse experiment=starter cluster.nodes=2 cluster.tasks_per_node=2"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument("--json", action="store_true", help="as JSON; what happens is told on stderr")


def run(args: argparse.Namespace) -> int:
    from runyard.cluster.rehearsal.rehearse import Rehearsal, print_result

    def say(words: str) -> None:
        print(words, file=sys.stderr, flush=True)

    told = Rehearsal(args.overrides, say).run()
    print_result(told, as_json=args.json)
    return 0 if told.equal else FAILED
