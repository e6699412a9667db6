"""The callable that each task of a pack runs: one of its runs, alone (``cluster.runs_per_task``)."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runyard.cluster.job import batch_shell
from runyard.cluster.job.train_job import TrainJob
from runyard.cluster.slurm import pack
from runyard.errors import UserError
from runyard.runs.lease_holder import LeaseHolder
from runyard.runs.run import Run
from runyard.runs.summary import RunSummary
from runyard.tracking.notify import notify_end

CANCEL_FILE_POLL_S = 2.0


@dataclass
class PackJob:
    """Trains the run whose place in ``run_dirs`` is the task's number. The array's last job may have fewer runs."""

    run_dirs: list[str]

    def __call__(self) -> str:
        """Train, and return how it ended; ``left`` if there was nothing to do."""
        task, job = int(os.environ["SLURM_PROCID"]), str(LeaseHolder.this_process(os.environ).job)
        if task >= len(self.run_dirs):
            return "left"
        train = TrainJob(self.run_dirs[task])
        with contextlib.suppress(UserError):  # of a damaged record, which training explains
            if pack.has_left(RunSummary(Path(train.run_dir)), job):
                print(f"runyard: this run is over, or has another job: job {job} leaves it out", flush=True)
                return "left"
        request = pack.cancel_file(Path(train.run_dir), job)
        threading.Thread(target=_stop_when_asked, args=(request,), name="cancel", daemon=True).start()
        try:
            with _alone(task, len(self.run_dirs)):
                return train()
        finally:
            with contextlib.suppress(UserError):
                if pack.has_left(RunSummary(Path(train.run_dir)), job):  # the job itself may go on for long
                    notify_end(Run.open(train.run_dir))


def _stop_when_asked(request: Path) -> None:
    while not request.exists():
        time.sleep(CANCEL_FILE_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)  # it is blocked until the task can answer it by saving


@contextlib.contextmanager
def _alone(task: int, tasks: int) -> Iterator[None]:
    """Have this task see itself as the only one of its step, on one of the job's GPUs and with its part of the CPUs.

    submitit, which called this task, sees afterwards what it saw before.
    """
    saved = dict(os.environ)
    os.environ |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
    os.environ.pop(batch_shell.VARIABLE, None)  # a task cannot requeue the job of the others
    if gpus := saved.get("CUDA_VISIBLE_DEVICES", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus.split(",")[task % len(gpus.split(","))]
    if (cpus := len(os.sched_getaffinity(0))) == os.cpu_count():  # srun has not bound it to CPUs of its own
        os.environ.setdefault("SLURM_CPUS_PER_TASK", str(max(1, cpus // tasks)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)
