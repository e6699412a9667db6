"""``runyard train``: train a run here, in this process (what torchrun and srun start)."""

from __future__ import annotations

import argparse
import os
import sys
import time

from runyard.cli.parser import add_run_argument
from runyard.errors import FAILED, INTERRUPTED

HELP = "train a run here, in this process (what torchrun and srun start)"
EXAMPLE = "torchrun --nproc-per-node 4 -m runyard train runs/ID"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    parser.add_argument("--from-scratch", action="store_true", help="restart from step 0 if no checkpoint is left")


def run(args: argparse.Namespace) -> int:
    from runyard.runs import own_code
    from runyard.runs.run import Run
    from runyard.training.stop_signals import StopFlag

    run = Run.find(args.run, args.runs_dir)
    run.require_own(instead="its files would be written: begin one of your own with `runyard submit`")
    own_code.exec_run_code(run, args.argv)
    if not run.code_path.is_dir() and (restored := own_code.restore_code(run)) is not None:
        print(f"runyard: {restored}", file=sys.stderr, flush=True)
    if args.from_scratch:
        run.record["from_scratch"] = time.time()  # this start only; `resume --from-scratch` records it
    run.set_umask()
    stop = StopFlag()  # before torch, whose import takes seconds
    from runyard.runs.lease import LeaseLost
    from runyard.training.distributed.health_check import HealthError
    from runyard.training.distributed.peer_failure import PeerFailure
    from runyard.training.distributed.process_group import from_environment
    from runyard.training.train_state import DivergenceError
    from runyard.training.trainer import Outcome
    from runyard.training.trainer import train as train_run

    rank = from_environment(os.environ).rank
    if rank == 0:
        stop.watch_time_limit(os.environ, run.config.cluster.signal_delay_s)
    try:
        outcome = train_run(run, stop)
    except (DivergenceError, PeerFailure, LeaseLost, HealthError) as error:
        print(f"runyard: {error}", file=sys.stderr)
        return FAILED
    if outcome is Outcome.INTERRUPTED:
        stop.ignore_signals()  # everything is saved; srun signals ranks that are still exiting once rank 0 has exited
    # Only rank 0 returns 130: with --kill-on-bad-exit=1 another rank's 130 would kill rank 0 while it saves.
    return INTERRUPTED if outcome is Outcome.INTERRUPTED and rank == 0 else 0
