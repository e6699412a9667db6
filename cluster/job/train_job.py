"""The callable that each task of a job runs: the only connection between submitit and training."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from runyard.cluster.job.batch_shell import BatchShell
from runyard.config.schema import ClusterConfig
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
            run = Run.open(self.run_dir)
            cluster = run.config.cluster
            submitted = cluster.nodes * tasks_per_node(cluster) if cluster.launcher == "slurm" else None
            shell = BatchShell.find()
            outcome, _ = train_task(run, submitted)
            if shell is not None:
                shell.requeue_if_killed(run)
            return outcome
        except ExplainedError as error:
            print(f"runyard: {error}", file=sys.stderr, flush=True)
            sys.exit(error.exit_code)


def tasks_per_node(cluster: ClusterConfig) -> int:
    """Return the number of tasks on each node: as set, else one per GPU, else one.

    A run that shares its job with others is one task (``cluster.runs_per_task``).
    """
    return cluster.tasks_per_node or (cluster.runs_per_task == 1 and cluster.gpus_per_node) or 1
