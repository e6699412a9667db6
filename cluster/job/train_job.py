"""The callable that each task of a job runs: the only connection between submitit and training."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from runyard.training.stop_signals import StopFlag


@dataclass
class TrainJob:
    """Trains the run in ``run_dir``. Only this path is pickled: everything else is read where the task runs."""

    run_dir: str

    def __call__(self) -> str:
        """Train, and return how it ended: ``finished`` or ``interrupted``."""
        stop = StopFlag()  # before torch, whose import takes seconds
        from runyard.errors import UserError
        from runyard.runs.lease import LeaseLost
        from runyard.runs.run import Run
        from runyard.training.distributed.health_check import HealthError
        from runyard.training.distributed.peer_failure import PeerFailure
        from runyard.training.distributed.process_group import from_environment
        from runyard.training.train_state import DivergenceError
        from runyard.training.trainer import train

        try:
            run = Run.open(Path(self.run_dir))
            run.set_umask()
            if from_environment(os.environ).rank == 0:
                stop.watch_time_limit(os.environ, run.config.cluster.signal_delay_s)
            return str(train(run, stop))
        except (UserError, DivergenceError, PeerFailure, LeaseLost, HealthError) as error:
            print(f"runyard: {error}", file=sys.stderr, flush=True)
            sys.exit(2 if isinstance(error, UserError) else 1)
        finally:
            stop.ignore_signals()  # all is saved: a signal while Python exits would look like a crash
