"""``runyard train``: train a run here, in this process (what torchrun and srun start)."""

from __future__ import annotations

import argparse
import sys
import time

from runyard.cli.parser import add_run_argument

HELP = "train a run here, in this process (what torchrun and srun start)"
EXAMPLE = "torchrun --nproc-per-node 4 -m runyard train runs/ID"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    parser.add_argument("--from-scratch", action="store_true", help="restart from step 0 if no checkpoint is left")


def run(args: argparse.Namespace) -> int:
    from runyard.cluster.job.batch_shell import BatchShell
    from runyard.runs.code import own_code
    from runyard.runs.run import Run
    from runyard.training.task import train_task

    run = Run.find(args.run, args.runs_dir)
    run.require_own(instead="its files would be written: begin one of your own with `runyard submit`")
    own_code.exec_run_code(run, args.argv)
    if not run.code_path.is_dir() and (restored := own_code.restore_code(run)) is not None:
        print(f"runyard: {restored}", file=sys.stderr, flush=True)
    if args.from_scratch:
        run.record["from_scratch"] = time.time()  # this start only; `resume --from-scratch` records it
    shell = BatchShell.find()
    _, exit_code = train_task(run)
    if shell is not None:
        shell.requeue_if_killed(run)
    return exit_code
