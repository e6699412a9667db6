"""The callable that each task of a job runs: the only connection between submitit and training."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from runyard.errors import ExplainedError
from runyard.runs.run import Run
from runyard.training.task import train_task


@dataclass
class TrainJob:
    """Trains the run in ``run_dir``. Only this path is pickled: everything else is read where the task runs."""

    run_dir: str

    def __call__(self) -> str:
        """Train, and return how it ended: ``finished`` or ``interrupted``."""
        try:
            outcome, _ = train_task(Run.open(self.run_dir))
            return outcome
        except ExplainedError as error:
            print(f"runyard: {error}", file=sys.stderr, flush=True)
            sys.exit(error.exit_code)
