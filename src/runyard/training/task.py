"""One task of a training, from its signals to its exit code: for submitit's job, under srun or torchrun, or alone.

Imports no torch: the signal handlers must be set before its import, which takes seconds.
"""

from __future__ import annotations

import contextlib
import os

from runyard.errors import ExitCode
from runyard.ownership import per_user_name, private_folder
from runyard.runs.run import Run
from runyard.surroundings import settle
from runyard.tracking.notify import notify_end
from runyard.training.stop_signals import StopFlag

# Set by the batch scripts and by the controller of a local job, which know better how the run ends, and tell it.
SUPERVISORS = {"RUNYARD_BEGAN", "SUBMITIT_LOCAL_JOB_ID"}


def train_task(run: Run, expected_tasks: int | None = None) -> tuple[str, ExitCode]:
    """Train ``run`` as one rank. Returns how it ended, ``finished`` or ``interrupted``, and the process's exit code.

    Args:
        expected_tasks: How many tasks the job was submitted with, None if that is not known.

    Raises:
        UserError, TrainingFailed: see ``trainer.train``.
    """
    run.set_umask()
    stop, is_last = StopFlag(), False
    try:
        settle(needs_tmpdir=True)
        if "NUMBA_CACHE_DIR" not in os.environ:  # once for all starts on all nodes, and not in a home with a quota
            with contextlib.suppress(OSError):
                os.environ["NUMBA_CACHE_DIR"] = str(private_folder(run.path.parent / per_user_name(".cache")))
        from runyard.training.distributed.launcher import from_environment
        from runyard.training.trainer import Outcome, train

        rank = from_environment(os.environ, expected_tasks).rank
        is_last = rank == 0 and os.environ.keys().isdisjoint(SUPERVISORS)
        if rank == 0:
            stop.watch_time_limit(os.environ, run.config.cluster.signal_delay_s)
        outcome = train(run, stop)
    finally:
        stop.ignore_signals()  # all is saved: a signal while Python exits would look like a crash
        if is_last:
            notify_end(run)
    # Only rank 0 returns 130: with --kill-on-bad-exit=1 another rank's 130 would kill rank 0 while it saves.
    interrupted = outcome is Outcome.INTERRUPTED and rank == 0
    return str(outcome), ExitCode.INTERRUPTED if interrupted else ExitCode.DONE
