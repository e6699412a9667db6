"""From overrides to jobs: compose, validate, check what is cheap to check, create the runs, submit."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runyard import slurm_client
from runyard.cluster.job.train_job import TrainJob
from runyard.cluster.launch.batch_script import SbatchJob, SubmissionUnknown, require_sbatch, tasks_per_node
from runyard.cluster.launch.checks.check import CheckContext
from runyard.cluster.launch.checks.preflight import (
    planned_job,
    preflight,
    python_warning,
    require_own_run,
    require_resumable,
    skipped_checkpoints_warning,
)
from runyard.cluster.launch.local import LocalExecutor
from runyard.cluster.monitor.attach import JobHandle, LocalJobHandle, SlurmJobHandle
from runyard.cluster.slurm import queue
from runyard.cluster.slurm.submission import finish_submission, record_submission, submission_lock
from runyard.config import schema
from runyard.config.compose import Composed, compose, expand, gpu_count, visible_gpus
from runyard.config.fields import format_literal
from runyard.config.schema import ClusterConfig, Config
from runyard.data import manifest
from runyard.errors import UserError
from runyard.files import write_atomic
from runyard.ownership import private_folder
from runyard.runs import own_code
from runyard.runs.identity import CHANGEABLE_SETTINGS, changed_settings
from runyard.runs.run import Run, new_id, sweeps_dir
from runyard.tracking.wandb.agent import SweepAssignment
from runyard.training.stop_signals import STOP_SIGNALS


@dataclass(frozen=True)
class SubmissionPlan:
    """A checked submission that has not been made: one point, or several of a sweep; or the one that W&B's agent was
    ``assignment``."""

    configs: list[Composed]
    after: str | None
    handed: SweepAssignment | None = None

    @property
    def config(self) -> Config:
        return self.configs[0].config


def plan_submission(
    overrides: list[str],
    *,
    sweep: bool = False,
    after: str | None = None,
    dry_run: bool = False,
    assignment: SweepAssignment | None = None,
) -> SubmissionPlan:
    """Compose every point and check it against the data and this machine; data may come to be while it waits ``after``.

    Raises:
        UserError: the configuration, the data or this machine cannot carry it. Nothing was created.
    """
    grid = expand(overrides) if sweep else [overrides]
    first = compose(grid[0])
    if after is not None and first.config.cluster.launcher == "local":
        raise UserError(f"--after {after}: cluster=local has no queue to wait in; submit when that has ended")
    needs_data = after is None and not dry_run
    prepare = manifest.prepare_command(first.overrides)
    # As many as the grid has: to compose a thousand takes a minute, and what SLURM would refuse shows in the first.
    preflight(
        check_context([first.config] * len(grid), prepare, after, needs_data=needs_data), include_slurm=not dry_run
    )
    if (doubt := python_warning(first.config)) is not None:
        print(f"runyard: warning: {doubt}", file=sys.stderr, flush=True)
    points = [first, *map(compose, grid[1:])]
    if len({repr(point.config.cluster) for point in points}) > 1:
        raise UserError("a sweep is one array of equal jobs: leave the cluster's settings out of what it varies")
    for point in points[1:]:
        one = check_context([point.config], manifest.prepare_command(point.overrides), needs_data=needs_data)
        preflight(one, include_slurm=False)
    return SubmissionPlan(points, after, assignment)


def submit(plan: SubmissionPlan) -> list[tuple[Run, JobHandle]]:
    """Create the runs and put them on SLURM's queue, several as one array; or start the first on this machine.

    Raises:
        UserError: sbatch is missing or refused. The runs it was for are gone again.
    """
    if plan.config.cluster.launcher == "local":
        return [start_local(point, assignment=plan.handed) for point in plan.configs[:1]]
    require_sbatch()
    sweep = new_id(plan.config.name) if len(plan.configs) > 1 else None
    runs: list[Run] = []
    try:
        for point in plan.configs:
            runs.append(create_run(point, sweep, plan.handed))
        if sweep is None:
            return [(runs[0], launch(runs[0], plan.after))]
        return list(zip(runs, enqueue(runs, sweep, sweeps_dir(plan.config.runs_dir) / sweep, plan.after), strict=True))
    except SubmissionUnknown:
        raise
    except BaseException:
        for path in [run.path for run in runs] + ([sweeps_dir(plan.config.runs_dir) / sweep] if sweep else []):
            shutil.rmtree(path, ignore_errors=True)
        raise


def start_local(
    point: Composed, sweep: str | None = None, assignment: SweepAssignment | None = None
) -> tuple[Run, JobHandle]:
    """Create one run, alone or as a point of a ``sweep``, and start it on this machine."""
    run = create_run(point, sweep, assignment)
    return run, launch(run)


def create_run(point: Composed, sweep: str | None, assignment: SweepAssignment | None) -> Run:
    """A new run: alone, of a ``sweep`` of our own, or the one of a sweep at W&B that its agent was ``assignment``."""
    if assignment is None:
        return Run.create(point.config, persistent_overrides(point), sweep)
    return Run.create(point.config, persistent_overrides(point), assignment.sweep, wandb=assignment.record)


def launch(run: Run, after: str | None = None) -> JobHandle:
    """Start a job for ``run``, which is new. The job runs the code snapshot in the run's directory."""
    with submission_lock(run.path, run.cli_reference) as lock:
        return _launch_locked(run, lock, after)


def _launch_locked(run: Run, lock: int | None, after: str | None = None) -> JobHandle:
    run.set_umask()
    if run.config.cluster.launcher == "slurm":
        require_sbatch()
        return enqueue([run], run.id, run.path / "slurm", after, hold=[lock])[0]
    tasks, gpus = tasks_and_gpus(run.config.cluster)
    python = f"{shlex.quote(sys.executable)} -m runyard.cluster.job.task"
    executor = LocalExecutor(run.path / "slurm", python=python)  # AutoExecutor takes no signal_delay_s here
    executor.update_parameters(
        tasks_per_node=tasks,
        gpus_per_node=gpus,
        visible_gpus=visible_gpus(),
        timeout_min=run.config.cluster.timeout_min,
        signal_delay_s=run.config.cluster.signal_delay_s,
        nodes=1,
    )
    with _job_environment(run):
        job = executor.submit(TrainJob(str(run.path)))
    run.add_job(job_record(run, run.path / "slurm") | {"id": str(job.job_id)})
    return LocalJobHandle(job)


def resume(run: Run, overrides: list[str], *, from_scratch: bool = False, trusted: bool = False) -> JobHandle:
    """Start a job that goes on with ``run``, with other settings of the kind that does not change what the run learns.

    Args:
        from_scratch: Begin again at step 0, where no checkpoint is left of those the run had.
        trusted: A person has said that the code in it is to be run though it is another user's.

    Raises:
        UserError: one that does, named with its old and its new value; or the run cannot go on (``require_resumable``).
    """
    require_own_run(run, trusted=trusted)
    with submission_lock(run.path, run.cli_reference) as lock:
        run.reload()  # as another command may have left it
        require_resumable(run)
        for said in (
            own_code.restore_code(run, trusted=trusted),
            skipped_checkpoints_warning(run, from_scratch=from_scratch),
        ):
            if said is not None:
                print(f"runyard: {said}", file=sys.stderr, flush=True)
        if not (run.code_path / "runyard" / "cluster").is_dir():
            raise UserError(
                f"run {run.id} was created by a version before 0.2, whose jobs this one cannot start: go on with it "
                f"here by `runyard train {run.cli_reference}`, which runs its own code, "
                "or with a checkout of that version"
            )
        config, all_overrides = _apply_overrides(run, overrides)
        preflight(check_context([config], manifest.prepare_command(all_overrides)))
        if config == run.config:
            return _launch_locked(run, lock)
        previous_record, text = dict(run.record), (run.path / "config.yaml").read_bytes()
        run.change_settings(config, all_overrides, changes=overrides)  # before the launch: a job may begin at once
        try:
            return _launch_locked(run, lock)
        except SubmissionUnknown:
            raise
        except BaseException:
            write_atomic(run.path / "config.yaml", text)
            with run.editing_record() as record:
                for name in ("overrides", "config_sha256", "amended"):
                    if name in previous_record:
                        record[name] = previous_record[name]
                    else:
                        del record[name]
            raise


def _apply_overrides(run: Run, overrides: list[str]) -> tuple[Config, list[str]]:
    """The configuration that ``run`` goes on with, and all the overrides that make it.

    Raises:
        UserError: one of ``overrides`` changes what the run learns.
    """
    given = run.record.get("overrides", [])
    before = compose(given).values
    if any(o.lstrip("+").startswith("cluster=") for o in overrides):
        # Another place: what was said of the one before goes with it.
        given = [o for o in given if not o.startswith(("cluster=", "cluster."))]
    changed = changed_settings(before, compose([*given, *overrides]).values)
    for name, (old, new) in changed.items():
        if not name.startswith(CHANGEABLE_SETTINGS):
            raise UserError(
                f"{name}={format_literal(new)}: run {run.id} was begun with {format_literal(old)}, and would learn "
                f"something else; resume takes {', '.join(n.rstrip('.') for n in CHANGEABLE_SETTINGS)}; "
                "start a new run for the rest"
            )
    values = schema.config_to_dict(run.config)
    for name, (_, new) in changed.items():
        *groups, leaf = name.split(".")
        inner = values
        for group in groups:
            inner = inner[group]
        inner[leaf] = new
    return schema.config_from_dict(values), [*given, *overrides]


def tasks_and_gpus(cluster: ClusterConfig) -> tuple[int, int]:
    """Tasks and GPUs of each machine: one task per GPU, or two on this machine without any."""
    if cluster.launcher == "slurm":
        return tasks_per_node(cluster), cluster.gpus_per_node or 0
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


def check_context(
    configs: list[Config], prepare: str, after: str | None = None, *, needs_data: bool = True
) -> CheckContext:
    """What preflight and doctor check: one run, or a sweep whose points lie on the same cluster."""
    tasks, _ = tasks_and_gpus(configs[0].cluster)
    on_slurm = configs[0].cluster.launcher == "slurm"
    script = (lambda: planned_job(configs, after).script()) if on_slurm else None
    return CheckContext(configs[0], tasks, prepare, needs_data, len(configs), script, after)


def enqueue(
    runs: list[Run], name: str, folder: Path, after: str | None = None, hold: Sequence[int | None] = ()
) -> list[JobHandle]:
    """Put ``runs`` on SLURM's queue as one job of that ``name``, several as its array, with its logs in ``folder``.

    Args:
        hold: Locks of ``submission_lock``, which sbatch holds as well; a None among them is a disk without locks.

    Raises:
        UserError: sbatch refused. Nothing is on the queue then.
        Unsure: it may be on the queue. The runs' records have the submission, and what asks of them next finds out.
    """
    runs[0].set_umask()
    config = runs[0].config
    if (shared := sweeps_dir(config.runs_dir)) in folder.parents:
        private_folder(shared, group_reads=config.runs_group_readable)
    folder.mkdir(parents=True, exist_ok=True)
    batch = SbatchJob(name, folder, runs, after)
    for run in runs:
        record_submission(run, batch.token, job_record(run, folder) | ({} if name == run.id else {"name": name}))
    try:
        ids = batch.submit([lock for lock in hold if lock is not None])
        try:
            if None in hold:
                _require_first_job(runs[0], ids[0])
            for run, job_id in zip(runs, ids, strict=True):
                finish_submission(run, job_id)
        except BaseException as error:
            batch.cancel_submission(error)
            raise
    except SubmissionUnknown:
        raise
    except BaseException:
        for run in runs:
            with contextlib.suppress(UserError):
                finish_submission(run, None)
        raise
    return [SlurmJobHandle(job_id, folder) for job_id in ids]


def _require_first_job(run: Run, job_id: str) -> None:
    """Without locks two commands may each have submitted a job of ``run``: the first on the queue stays.

    Raises:
        UserError: another job was first.
    """
    jobs = queue.all_user_jobs([job_id], slurm_client.RETRY_TIMEOUT_S).jobs_of(run.path)
    first = next((job for job in reversed(jobs) if job.active), None)
    if first is not None and first.id != job_id:
        raise UserError(f"run {run.id} has job {first.id} already, of another command; see: runyard status {run.id}")


def job_record(run: Run, logs: Path) -> dict[str, Any]:
    """A job of ``run`` that begins now, as its record describes it."""
    cluster = run.config.cluster
    tasks, gpus = tasks_and_gpus(cluster)
    size = {"nodes": cluster.nodes, "tasks_per_node": tasks, "gpus_per_node": gpus}
    where = {"launcher": cluster.launcher, "cluster": cluster.name}
    return where | size | {"submitted": time.time(), "logs": os.path.relpath(logs, run.path)}


@contextlib.contextmanager
def _job_environment(run: Run) -> Iterator[None]:
    """What a job inherits: the code snapshot alone, a log for submitit's own words, no Ctrl-C and no hang-up; and
    requests to stop held back, until it can answer them.

    Ctrl-C reaches a terminal's whole process group; only the attached command may act on it, by asking the job to save.
    A job that held the command's output would keep ``$(runyard submit --detach --json)`` waiting for its end.
    """
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(run.code_path), before.get("PYTHONPATH")]))
    os.environ["PYTHONSAFEPATH"] = "1"  # else `python -m` would find the checkout in the working directory first
    handlers = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGHUP)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
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
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(before)


def persistent_overrides(composed: Composed) -> list[str]:
    return [o for o in composed.overrides if not o.startswith("runs_dir=")]
