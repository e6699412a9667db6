"""Turns overrides into jobs: composes and validates the settings, makes the quick checks, creates the runs, submits."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runyard.cluster.job.train_job import TrainJob, tasks_per_node
from runyard.cluster.launch.batch_script import SbatchJob, SubmissionUnknown, require_sbatch
from runyard.cluster.launch.checks.check import CheckContext
from runyard.cluster.launch.checks.preflight import (
    planned_job,
    preflight,
    python_warning,
    require_own_run,
    require_resumable,
    skipped_checkpoints_warning,
)
from runyard.cluster.launch.local import LocalExecutor, job_environment
from runyard.cluster.launch.waiting import Waiting, in_parts
from runyard.cluster.monitor.attach import JobHandle, LocalJobHandle, SlurmJobHandle
from runyard.cluster.slurm.estimate import StartEstimate
from runyard.cluster.slurm.submission import (
    finish_submission,
    record_submission,
    require_first_job,
    submission_lock,
)
from runyard.config import schema
from runyard.config.compose import Composed, compose, compose_grid, gpu_count, visible_gpus
from runyard.config.fields import format_literal
from runyard.config.overrides import translate_time
from runyard.config.schema import ClusterConfig, Config
from runyard.data import manifest
from runyard.errors import UserError
from runyard.files import write_atomic
from runyard.ownership import private_folder
from runyard.runs.code import own_code
from runyard.runs.identity import changeable_settings, changed_settings, is_changeable
from runyard.runs.record import JobRecord
from runyard.runs.run import Run, new_id, sweeps_dir
from runyard.slurm_client import QueryError
from runyard.tracking.wandb.agent import SweepAssignment


@dataclass(frozen=True)
class SubmissionPlan:
    """A checked submission that has not been made.

    Attributes:
        configs: The run's configuration, or those of a sweep's points.
        after: The job that must succeed first, or must end or fail, as ``SbatchJob`` takes it; None for none.
        handed: The run of a W&B sweep that this is, None for a run of runyard's own.
        expected_start: When SLURM would start it, None if it was not asked or does not say.
    """

    configs: list[Composed]
    after: str | None
    handed: SweepAssignment | None = None
    expected_start: StartEstimate | None = None

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
    """Compose every point and check it against the data and this machine.

    With ``after`` or ``dry_run`` the data may be missing, but not damaged, as it can be prepared while the job waits.

    Raises:
        UserError: the configuration, the data or this machine does not allow it. Nothing was created.
    """
    points = compose_grid(overrides) if sweep else [compose(overrides)]
    first = points[0]
    if after is not None and first.config.cluster.launcher == "local":
        raise UserError(f"--after {after}: cluster=local has no queue to wait in", "submit when that has ended")
    if first.config.cluster.launcher == "slurm" and not dry_run:
        require_sbatch()
    needs_data = after is None and not dry_run
    prepare = manifest.prepare_command(first.overrides)
    # The first point stands for all: SLURM would refuse all or none.
    prepared = os.path.lexists(manifest.dataset_dir(first.config.data) / manifest.MANIFEST_FILE)
    first_context = check_context([first.config] * len(points), prepare, after, needs_data=needs_data or prepared)
    preflight(first_context, include_slurm=not dry_run)
    if (warning := python_warning(first.config)) is not None:
        print(f"runyard: warning: {warning}", file=sys.stderr, flush=True)
    require_no_chain(first.config.cluster, several=len(points) > 1)
    if len(points) == 1 and (size := first.config.cluster.runs_per_task) > 1:
        raise UserError(f"cluster.runs_per_task={size}: is for a grid", "submit several runs with -m, or leave it out")
    if len({repr(point.config.cluster) for point in points}) > 1:
        raise UserError(
            "-m: the points of a sweep are one array of equal jobs, and their cluster.* settings differ",
            "give each cluster.* setting one value",
        )
    for point in points[1:]:
        context = check_context([point.config], manifest.prepare_command(point.overrides), needs_data=needs_data)
        preflight(dataclasses.replace(context, script=None), include_slurm=False)
    expected_start = None
    if first_context.script is not None and not dry_run:
        with contextlib.suppress(QueryError):
            expected_start = first_context.expected_start
    return SubmissionPlan(points, after, assignment, expected_start)


def require_no_chain(cluster: ClusterConfig, *, several: bool = True) -> None:
    """Refuse ``cluster.chain`` for several runs, which are one array already.

    Raises:
        UserError: it is set.
    """
    if several and cluster.chain > 1:
        raise UserError(f"cluster.chain={cluster.chain}: is for a single run", "submit the runs one by one")


def submit(plan: SubmissionPlan, waiting: Waiting | None = None) -> list[tuple[Run, JobHandle]]:
    """Create the runs and submit them to SLURM, several as one array; or start the first on this machine.

    Args:
        waiting: Wait while the job is refused for a reason that passes, and submit a grid in parts that are taken.

    Raises:
        UserError: sbatch is missing or refused the job. The runs without a job were deleted again.
    """
    if plan.config.cluster.launcher == "local":
        return [start_local(point, assignment=plan.handed) for point in plan.configs[:1]]
    require_sbatch()
    sweep = new_id(plan.config.name) if len(plan.configs) > 1 else None
    runs: list[Run] = []
    jobs: list[JobHandle] = []
    try:
        for point in plan.configs:
            runs.append(create_run(point, sweep, plan.handed))

        def enqueue_part(part: slice) -> list[JobHandle]:
            return _enqueue_part(runs, part, sweep, plan.after)

        if waiting is None:
            jobs += enqueue_part(slice(len(runs)))
        else:
            waiting.until_accepted(lambda: jobs.extend(in_parts(slice(len(jobs), len(runs)), enqueue_part)))
    except SubmissionUnknown:
        raise
    except BaseException:
        leftover = [run.path for run in runs[len(jobs) :]]
        for path in leftover + ([sweeps_dir(plan.config.runs_dir) / sweep] if sweep and not jobs else []):
            shutil.rmtree(path, ignore_errors=True)
        raise
    return list(zip(runs, jobs, strict=True))


def _enqueue_part(runs: list[Run], part: slice, sweep: str | None, after: str | None) -> list[JobHandle]:
    """Put a part of the runs on SLURM's queue: all of a grid as one array with the sweep's name, or a part of it."""
    if sweep is None:
        return [launch(runs[0], after)]
    folder, chosen = sweeps_dir(runs[0].config.runs_dir) / sweep, runs[part]
    if len(chosen) == len(runs):
        return enqueue(chosen, sweep, folder, after)
    name = f"{sweep}-{part.start}"
    return enqueue(chosen, name, folder / name, after)


def start_local(
    point: Composed, sweep: str | None = None, assignment: SweepAssignment | None = None
) -> tuple[Run, JobHandle]:
    """Create one run, by itself or as a point of a ``sweep``, and start it on this machine."""
    run = create_run(point, sweep, assignment)
    return run, launch(run)


def create_run(point: Composed, sweep: str | None, assignment: SweepAssignment | None) -> Run:
    """Create a run: by itself, as a point of a ``sweep``, or as the run of a W&B sweep that an agent was assigned."""
    if assignment is None:
        return Run.create(point.config, persistent_overrides(point), sweep)
    return Run.create(point.config, persistent_overrides(point), assignment.sweep, wandb=assignment.record)


def launch(run: Run, after: str | None = None) -> JobHandle:
    """Start a job for a new ``run``. The job runs the code snapshot in the run's directory."""
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
    with job_environment(run):
        job = executor.submit(TrainJob(str(run.path)))
    run.add_job({**job_record(run, run.path / "slurm"), "id": str(job.job_id)})
    return LocalJobHandle(job)


def resume(run: Run, overrides: list[str], *, from_scratch: bool = False, trusted: bool = False) -> JobHandle:
    """Start a job that resumes ``run``.

    Args:
        overrides: Changes of settings that do not change what the run learns.
        from_scratch: Restart from step 0 if no checkpoint is left.
        trusted: The user has agreed to run the code in the run although it is another user's.

    Raises:
        UserError: an override changes what the run learns; the message has its old and its new value. Or the run
            cannot be resumed (``require_resumable``).
    """
    require_own_run(run, trusted=trusted)
    with submission_lock(run.path, run.cli_reference) as lock:
        run.reload()  # another command may have changed it meanwhile
        require_resumable(run)
        for warning in (
            own_code.restore_code(run, trusted=trusted),
            skipped_checkpoints_warning(run, from_scratch=from_scratch),
        ):
            if warning is not None:
                print(f"runyard: {warning}", file=sys.stderr, flush=True)
        if not (run.code_path / "runyard" / "cluster").is_dir():
            raise UserError(
                f"run {run.id} was created by a version before 0.2, whose jobs this one cannot start",
                f"continue it here with `runyard train {run.cli_reference}`, which runs the run's own code, or with a "
                "checkout of that version",
            )
        config, all_overrides = _apply_overrides(run, overrides)
        here = dataclasses.replace(config, runs_dir=str(run.path.parent))  # it may have been moved
        preflight(check_context([here], manifest.prepare_command(all_overrides)))
        if config == run.config:
            return _launch_locked(run, lock)
        previous_record, text = run.record.copy(), (run.path / "config.yaml").read_bytes()
        run.change_settings(config, all_overrides, changes=overrides)  # before the launch: the job may start at once
        try:
            return _launch_locked(run, lock)
        except SubmissionUnknown:
            raise
        except BaseException:
            write_atomic(run.path / "config.yaml", text)
            with run.editing_record() as record:
                record["overrides"] = previous_record["overrides"]
                if "config_sha256" in previous_record:
                    record["config_sha256"] = previous_record["config_sha256"]
                if "amended" in previous_record:
                    record["amended"] = previous_record["amended"]
                else:
                    record.pop("amended", None)
            raise


def _apply_overrides(run: Run, overrides: list[str]) -> tuple[Config, list[str]]:
    """Return the configuration with which ``run`` is resumed, and all overrides that make it.

    Raises:
        UserError: one of ``overrides`` changes what the run learns.
    """
    earlier, overrides = run.record["overrides"], translate_time(overrides)
    previous = compose(earlier).values
    if any(override.lstrip("+").startswith("cluster=") for override in overrides):
        # Another cluster: the settings of the previous one do not apply to it.
        earlier = [override for override in earlier if not override.startswith(("cluster=", "cluster."))]
    changed = changed_settings(previous, compose([*earlier, *overrides]).values)
    for name, (old, new) in changed.items():
        if not is_changeable(name):
            raise UserError(
                f"{name}={format_literal(new)}: run {run.id} was begun with {format_literal(old)}, and would learn "
                "something else",
                f"resume takes {', '.join(changeable_settings())}; start a new run for the rest",
            )
    values = schema.config_to_dict(run.config)
    for name, (_, new) in changed.items():
        *groups, leaf = name.split(".")
        functools.reduce(dict.__getitem__, groups, values)[leaf] = new
    return schema.config_from_dict(values), [*earlier, *overrides]


def tasks_and_gpus(cluster: ClusterConfig) -> tuple[int, int]:
    """Return tasks and GPUs of each machine: by default one task per GPU, or two on this machine without GPUs."""
    if cluster.launcher == "slurm":
        return tasks_per_node(cluster), cluster.gpus_per_node or 0
    available = gpu_count()
    gpus = available if cluster.gpus_per_node is None else cluster.gpus_per_node
    if gpus > available:
        raise UserError(
            f"cluster.gpus_per_node={gpus}: this machine shows {available} GPUs", f"set {available} at most"
        )
    if cluster.nodes > 1:
        raise UserError(f"cluster.nodes={cluster.nodes}: cluster=local is this one machine", "set cluster.nodes=1")
    tasks = cluster.tasks_per_node or gpus or 2
    if gpus and tasks % gpus:
        raise UserError(
            f"cluster.tasks_per_node={tasks}: does not divide among {gpus} GPUs", "leave it unset for one task per GPU"
        )
    return tasks, gpus


def check_context(
    configs: list[Config], prepare: str, after: str | None = None, *, needs_data: bool = True
) -> CheckContext:
    """Return what ``preflight`` and ``doctor`` check: one run, or a sweep whose points use the same cluster."""
    tasks, _ = tasks_and_gpus(configs[0].cluster)
    on_slurm = configs[0].cluster.launcher == "slurm"
    script = (lambda: planned_job(configs, after).script()) if on_slurm else None
    return CheckContext(configs[0], tasks, prepare, needs_data, len(configs), script, after)


def enqueue(
    runs: list[Run], name: str, folder: Path, after: str | None = None, hold: Sequence[int | None] = ()
) -> list[JobHandle]:
    """Put ``runs`` on SLURM's queue as one job called ``name``, several as a job array, with its logs in ``folder``.

    Args:
        hold: Locks of ``submission_lock``, which sbatch holds as well; None for one on a file system without locks.

    Raises:
        UserError: sbatch refused. Nothing is on the queue then.
        SubmissionUnknown: it may be on the queue. The runs' records have the submission, and the next command that
            reads them finds out.
    """
    runs[0].set_umask()
    config = runs[0].config
    if (shared := sweeps_dir(config.runs_dir)) in folder.parents:
        private_folder(shared, group_reads=config.runs_group_readable)
    folder.mkdir(parents=True, exist_ok=True)
    batch = SbatchJob(name, folder, runs, after)
    for run, task in zip(runs, (k for packed in batch.packs for k in range(len(packed))), strict=True):
        job = job_record(run, folder)
        if len(batch.packs[0]) > 1:
            job["task"] = task
        if config.cluster.chain > 1:
            job["chain"] = config.cluster.chain
        record_submission(run, batch.token, job if name == run.id else {**job, "name": name})
    try:
        ids = batch.submit([lock for lock in hold if lock is not None])
        try:
            if None in hold:
                require_first_job(runs[0], ids[0])
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


def job_record(run: Run, logs: Path) -> JobRecord:
    """Return the entry in the record of ``run`` for a job that is submitted now."""
    cluster = run.config.cluster
    tasks, gpus = tasks_and_gpus(cluster)
    return {
        "launcher": cluster.launcher,
        "cluster": cluster.name,
        "nodes": cluster.nodes,
        "tasks_per_node": tasks,
        "gpus_per_node": gpus,
        "submitted": time.time(),
        "logs": os.path.relpath(logs, run.path),
    }


def persistent_overrides(composed: Composed) -> list[str]:
    return [override for override in composed.overrides if not override.startswith("runs_dir=")]
