"""``runyard resume``: go on with a run, wherever it stopped."""

from __future__ import annotations

import argparse

from runyard.arguments import of_a_run
from runyard.errors import UserError
from runyard.verbs.following import follow

HELP = "go on with a run from its newest checkpoint"
EXAMPLE = "runyard resume @last"


def arguments(parser: argparse.ArgumentParser) -> None:
    of_a_run(parser)
    parser.add_argument("--detach", action="store_true", help="return once the job has started")


def run(args: argparse.Namespace) -> int:
    from cluster import submit as launcher
    from runyard.run import Run

    run = Run.find(args.run, args.runs_dir)
    if run.finished:
        raise UserError(
            f"run {run.id} is finished: there is nothing to go on with; start another with `runyard submit`, "
            f"or write its report again: runyard report {run.reference}"
        )
    run.lease().release()  # refuse at once what another process is writing
    return follow(run, launcher.launch(run), detach=args.detach, as_json=False)
