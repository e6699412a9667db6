"""From overrides to a running job: compose, validate, check what is cheap to check, create the run, submit."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import submitit

from cluster.compose import Composed, compose, gpu_count
from cluster.job import TrainJob
from runyard.config import ClusterConfig, Config, check_world
from runyard.data import manifest
from runyard.errors import UserError
from runyard.run import Run

SAVE_BEFORE_LIMIT_S = 60  # how long before the time limit a job is asked to save and stop
LEAST_FREE_MB = 500


def submit(overrides: list[str]) -> tuple[Run, submitit.Job[str]]:
    """Create a run from ``overrides`` and start it.

    Raises:
        UserError: the configuration, the data or this machine cannot carry it. Nothing was created then.
    """
    composed = compose(overrides)
    tasks, _ = layout(composed.config.cluster)
    preflight(composed.config, tasks, manifest.prepare_command(composed.overrides))
    run = Run.create(composed.config, _kept(composed))
    return run, launch(run)


def launch(run: Run) -> submitit.Job[str]:
    """Start a job for ``run``, new or to be resumed. The job runs the code snapshot in the run's directory."""
    cluster = run.config.cluster
    tasks, gpus = layout(cluster)
    python = f"{shlex.quote(sys.executable)} -m cluster.task"
    executor = submitit.LocalExecutor(folder=run.path / "slurm", python=python)
    executor.update_parameters(
        tasks_per_node=tasks,
        gpus_per_node=gpus,
        timeout_min=cluster.timeout_min,
        signal_delay_s=SAVE_BEFORE_LIMIT_S,
        nodes=1,
    )
    with _job_environment(run):
        job: submitit.Job[str] = executor.submit(TrainJob(str(run.path)))
    run.add_job({"id": job.job_id, "cluster": cluster.name, "tasks": tasks, "gpus": gpus, "submitted": time.time()})
    return job


def layout(cluster: ClusterConfig) -> tuple[int, int]:
    """Tasks and GPUs on this machine: one task per GPU, or two without any."""
    there = gpu_count()
    gpus = there if cluster.gpus_per_node is None else cluster.gpus_per_node
    if gpus > there:
        raise UserError(f"cluster.gpus_per_node={gpus}: this machine shows {there}; ask for fewer")
    if cluster.nodes > 1:
        raise UserError(f"cluster.nodes={cluster.nodes}: cluster=local is this one machine; set cluster.nodes=1")
    tasks = cluster.tasks_per_node or gpus or 2
    if gpus and tasks % gpus:
        raise UserError(
            f"cluster.tasks_per_node={tasks}: does not divide among {gpus} GPUs; leave it unset for one task per GPU"
        )
    return tasks, gpus


def preflight(config: Config, tasks: int, prepare: str = "runyard prepare data=NAME") -> None:
    """The cheap checks that save a queue slot: batch divides, disk not full, data there (by ``prepare``)."""
    check_world(config, tasks)
    folder = manifest.folder(config.data)
    data = manifest.load(folder, prepare)
    manifest.verify(folder, data, list(data.splits), hash_files=False)
    samples = data.splits["train"].samples
    if config.batch_size > samples:
        raise UserError(f"batch_size={config.batch_size}: {folder} holds {samples} training images; set at most that")
    if config.precision == "fp16" and not gpu_count():
        raise UserError("precision=fp16 needs a GPU, and this machine shows none: set precision=bf16 or fp32")
    runs_dir = Path(config.runs_dir).absolute()
    there = next(folder for folder in (runs_dir, *runs_dir.parents) if folder.exists())
    free_mb = shutil.disk_usage(there).free / 1e6
    if free_mb < LEAST_FREE_MB:
        raise UserError(
            f"runs_dir={config.runs_dir}: {free_mb:.0f} MB free, expected {LEAST_FREE_MB} MB at least; "
            "free some, or set runs_dir elsewhere"
        )


@contextlib.contextmanager
def _job_environment(run: Run) -> Iterator[None]:
    """What a job inherits: the code snapshot alone, a log for submitit's own words, no Ctrl-C and no hang-up.

    Ctrl-C reaches a terminal's whole process group; only the attached command may act on it, by asking the job to save.
    A job that held the command's output would keep ``$(runyard submit --detach --json)`` waiting for its end.
    """
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(run.code), before.get("PYTHONPATH")]))
    os.environ["PYTHONSAFEPATH"] = "1"  # else `python -m` would find the checkout in the working directory first
    handlers = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGHUP)}
    outputs = {number: os.dup(number) for number in (0, 1, 2)}
    with open(os.devnull) as nothing, open(run.path / "slurm" / "controller.log", "a") as log:
        sys.stdout.flush()
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        for number, kept in outputs.items():
            os.dup2(kept, number)
            os.close(kept)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(before)


def _kept(composed: Composed) -> list[str]:
    return [o for o in composed.overrides if not o.startswith("runs_dir=")]
