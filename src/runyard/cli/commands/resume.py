"""``runyard resume``: resume a run from its newest checkpoint."""

from __future__ import annotations

import argparse

from runyard.cli.commands.following import announce, follow_job
from runyard.cli.parser import add_overrides, add_run_argument
from runyard.training.stop_signals import sigterm_as_interrupt

HELP = "resume a run from its newest checkpoint, also on another cluster or other nodes"
EXAMPLE = "runyard resume @last cluster=slurm cluster.nodes=2"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    add_overrides(parser)
    parser.add_argument("--from-scratch", action="store_true", help="restart from step 0 if no checkpoint is left")
    parser.add_argument("--trust", action="store_true", help="allow running code that another user owns")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--attach", action="store_true", help="stay attached until the run ends (default: cluster=local)")
    mode.add_argument(
        "--detach", action="store_true", help="return once the job is started or queued (default on SLURM)"
    )
    parser.add_argument("--json", action="store_true", help="print run, job and outcome as JSON, and nothing else")


def run(args: argparse.Namespace) -> int:
    from runyard.cluster.launch import submit as launcher
    from runyard.runs.run import Run

    run = Run.find(args.run, args.runs_dir)
    with sigterm_as_interrupt():
        started = run, launcher.resume(run, args.overrides, from_scratch=args.from_scratch, trusted=args.trust)
    if args.detach or (run.config.cluster.launcher == "slurm" and not args.attach):
        announce([started], as_json=args.json)
        return 0
    return follow_job(*started, as_json=args.json)
