"""The status of runs: SLURM tells what is pending or running, the journal tells how it ended."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from runyard import known_causes
from runyard.cluster.slurm import job_states, pack, queue
from runyard.cluster.slurm.queue import JobAnswer, JobInfo
from runyard.cluster.slurm.submission import resolve_pending
from runyard.errors import UserError
from runyard.runs.events import RequeueEvent, StartEvent, StopEvent
from runyard.runs.narrative import straggler_text
from runyard.runs.state import ACTIVE_STATES, RunState
from runyard.runs.summary import RunSummary

CLOCK_SKEW_S = 5  # the clocks of a cluster's nodes may differ by so much
REQUEUE_CAUSE_TEXT = {"preemption": "preempted", "crash": "crashed", "time limit": "time limit reached"}
SCRIPT_KILLED = ("RaisedSignal", "JobLaunchFailure")  # SLURM reports one or the other
STOP_CAUSE_TEXT = {"TERM": "cancelled", "USR2": "by a signal", "USR1": "preempted", "time limit": "time limit"}


@dataclass(frozen=True)
class Figures:
    """Step, accuracies (fractions), pace and other raw values of a run; None where unknown."""

    step: float | None
    steps: float | None
    epoch: int
    epochs: float | None
    top1_last: float | None
    top1_best: float | None
    images_per_s: float | None
    data_wait_pct: float | None
    slowest_rank: float | None
    slowest_node: str | None
    slowest_to_median: float | None
    restarts: int
    nodes: int | None
    eta_s: float | None


@dataclass(frozen=True)
class RunStatus:
    """The status of one run.

    Attributes:
        run: The run's summary.
        state: What it is doing, or how it ended; WAITING without a ``job`` if it was not submitted.
        message: The state, its reason and what to do about it, for a person.
        reason: SLURM's code for why the run waits, or the cause of its end; None if there is none.
        job: The job that the message is about, as SLURM knows it; None if SLURM knows none.
        nodes: The names of the nodes it runs on, or last ran on.
        error: Why SLURM could not be asked, if that leaves the state unknown.
    """

    run: RunSummary
    state: RunState
    message: str
    reason: str | None = None
    job: JobInfo | None = None
    nodes: tuple[str, ...] = ()
    error: str | None = None

    @property
    def active(self) -> bool:
        """Whether it may still make progress by itself."""
        return self.state in ACTIVE_STATES and not (self.state is RunState.WAITING and self.job is None)

    @property
    def figures(self) -> Figures:
        """Where it stands in numbers."""
        run, now = self.run, self.run.progress
        epochs, final = run.epochs, run.journal.final
        measure = "val_top1" if any(epoch.number("val_top1") is not None for epoch in epochs) else "test_top1"
        top1 = [value for epoch in epochs if (value := epoch.number(measure)) is not None]
        newest = epochs[-1] if epochs else None
        live = now if self.state is RunState.RUNNING else {}
        best = final.number("top1_best") if final else None
        steps = (now.get("step"), newest.step if newest else None, run.last_checkpoint_step)
        return Figures(
            step=max((step for step in steps if step is not None), default=None),
            steps=now.get("steps"),
            epoch=newest.epoch if newest else 0,
            epochs=now.get("epochs"),
            top1_last=top1[-1] if top1 else None,
            top1_best=best if best is not None else max(top1, default=None),
            images_per_s=live.get("images_per_s", newest.number("images_per_s") if newest else None),
            data_wait_pct=live.get("data_wait_pct", newest.number("data_wait_pct") if newest else None),
            slowest_rank=newest.number("slowest_rank") if newest else None,
            slowest_node=newest.text("slowest_node") if newest else None,
            slowest_to_median=newest.number("slowest_to_median") if newest else None,
            restarts=max(0, len(run.starts) - 1),
            nodes=len(self.nodes) or run.job.get("nodes"),
            eta_s=live.get("eta_s"),
        )


def query_slurm(
    runs: Sequence[RunSummary], *, wait_s: float = 0.0, timeout_s: float | None = None, holds_locks: bool = False
) -> tuple[JobAnswer, JobAnswer]:
    """Ask squeue and sacct about all ``runs`` at once, each only if needed.

    Returns squeue's answer and sacct's. The runs are read again after squeue has answered: a job that ended
    in between has recorded that by then, and a submission that was cut off has got its job.

    Args:
        runs: The runs to ask about.
        wait_s: Seconds for which to ask again while the controller is down.
        timeout_s: Time limit in seconds of each question, ``COMMAND_TIMEOUT_S`` if None.
        holds_locks: Whether the caller holds these runs' locks (``runyard.cluster.slurm.submission``).
    """
    queried = [
        run
        for run in runs
        if not run.finished_for_good and (run.on_slurm or run.pending_submission or not run.record["jobs"])
    ]
    squeue_answer = (
        queue.all_user_jobs([n for run in queried for n in run.slurm_jobs], wait_s, timeout_s)
        if queried
        else JobAnswer({})
    )
    without_end = []
    for run in queried:
        with contextlib.suppress(UserError):  # deleted meanwhile: keep the earlier reading
            if run.pending_submission:
                resolve_pending(run.path, squeue_answer, run.starts, held=holds_locks)
            run.refresh()
            if run.slurm_jobs and _needs_accounting(run, squeue_answer):
                without_end.append(run.slurm_jobs[-1])
    return squeue_answer, queue.sacct(without_end, timeout_s)


def run_status(run: RunSummary, *, wait_s: float = 0.0, holds_locks: bool = False) -> RunStatus:
    """Return the status of one run now. The arguments are those of ``query_slurm``."""
    return derive_status(run, *query_slurm([run], wait_s=wait_s, holds_locks=holds_locks), time.time())


def _needs_accounting(run: RunSummary, squeue_answer: JobAnswer) -> bool:
    """Whether the journal lacks the end of the last attempt: the job vanished, or SLURM itself requeued it."""
    job = current_job(run, squeue_answer)
    if job is None or not job.active:
        return squeue_answer.error is None and run.recorded_end is None
    return job.pending and bool(run.starts) and not isinstance(run.journal.last, RequeueEvent)


def derive_status(run: RunSummary, squeue_answer: JobAnswer, sacct_answer: JobAnswer, now: float) -> RunStatus:
    """Return the status of ``run`` from the answers of squeue and sacct at ``now``, unix seconds."""
    status = _derive(run, squeue_answer, sacct_answer, now)
    if status.job is not None and status.active:
        status = replace(status, message=status.message + _chain_text(status.job, pack.jobs_of(run, squeue_answer)))
    if run.record.get("pruned") is True and status.state in (RunState.INTERRUPTED, RunState.KILLED):
        return replace(status, state=RunState.PRUNED, message=f"its search stopped it; {status.message}")
    return status


def _chain_text(job: JobInfo, jobs: Sequence[JobInfo]) -> str:
    """Return how many more jobs of a chain wait besides ``job``; else ""."""
    count = sum(other.pending and other.id != job.id for other in jobs)
    return f"; {count} more job{'s' * (count > 1)} of its chain wait{'s' * (count == 1)}" if count else ""


def _derive(run: RunSummary, squeue_answer: JobAnswer, sacct_answer: JobAnswer, now: float) -> RunStatus:
    job = current_job(run, squeue_answer)
    nodes = queue.expand_hostlist(run.starts[-1].nodelist if run.starts else "")
    if run.finished_for_good:
        return RunStatus(run, RunState.FINISHED, "finished", nodes=nodes)
    if job is not None and job.pending:
        return _status_of_pending_job(run, job, accounting_job(run, sacct_answer), now)
    if job is not None and job.running:
        return _status_of_running_job(run, job, now)
    if not run.on_slurm and (pid := run.local_pid()) is not None:
        started = any(start.t >= run.job.get("submitted", 0) for start in run.starts)
        state = RunState.RUNNING if started else RunState.STARTING
        state = RunState.STOPPING if run.recorded_end else state
        message = f"{state} here, process {pid}{_straggler_text(run, state)}"
        return RunStatus(run, state, message, nodes=(os.uname().nodename,))
    if (end := run.recorded_end) is not None:
        ended = _status_of_ended_run(run, end, nodes, job)
        if not (squeue_answer.error and run.on_slurm and end.may_be_requeued):
            return ended
        message = f"SLURM was not asked: {squeue_answer.error}; the journal says: {ended.message}"
        return replace(ended, state=RunState.UNKNOWN, message=message, error=squeue_answer.error)
    if squeue_answer.error and (run.on_slurm or run.pending_submission):
        return RunStatus(
            run, RunState.UNKNOWN, f"SLURM was not asked: {squeue_answer.error}", nodes=nodes, error=squeue_answer.error
        )
    # The writer may be on another machine, or in a job that SLURM does not show to this user.
    if job is None and (writer := run.lease_holder_text()) is not None:
        return RunStatus(run, RunState.RUNNING, f"running: {writer}", nodes=nodes)
    if not run.job and not run.starts:
        message = f"not submitted: runyard resume {run.reference}"
        if run.pending_submission:
            message = f"its submission is under way, or was cut off: see `squeue`, or runyard resume {run.reference}"
        return RunStatus(run, RunState.WAITING, message)
    if job is None and sacct_answer.error and run.on_slurm:
        message = f"its job is gone and SLURM does not say how it ended ({sacct_answer.error}); {_resume_hint(run)}"
        return RunStatus(run, RunState.UNKNOWN, message, nodes=nodes, error=sacct_answer.error)
    vanished_job = accounting_job(run, sacct_answer) or job  # sacct knows more about how it ended, squeue about why
    return _status_of_vanished_job(
        run, replace(vanished_job, reason=job.reason) if vanished_job and job else vanished_job, nodes
    )


def _status_of_pending_job(run: RunSummary, job: JobInfo, accounted: JobInfo | None, now: float) -> RunStatus:
    code, meaning = job_states.pending_reason(job)
    if len(run.chain) > 1 and (end := run.recorded_end) is not None and end.is_final:
        cancel = f"runyard cancel {run.reference}"
        message = f"{end.message or end.reason}; the jobs left in its chain will end at once, or end them now: {cancel}"
        return RunStatus(run, RunState.WAITING, message, code, job)
    resume_text = ""
    if run.starts:
        cause = job_states.previous_end_reason(accounted) if accounted else None
        step = run.last_checkpoint_step
        if isinstance(requeue := run.journal.last, RequeueEvent):
            cause, step = REQUEUE_CAUSE_TEXT.get(requeue.cause, requeue.cause), requeue.step
        where = f" at step {step}" if step else " from the beginning" if step == 0 else ""
        resume_text = f"{cause + ', ' if cause else ''}waiting to go on{where} "
    message = f"{resume_text or 'waiting '}{_excluded_nodes_text(run)}({code}): {meaning}"
    if job.start is not None and job.start > now:
        message += f"; expected to start {job_states.format_time(job.start, now)}"
    return RunStatus(run, RunState.WAITING, message, code, job)


def _status_of_running_job(run: RunSummary, job: JobInfo, now: float) -> RunStatus:
    start_time = job.start if job.start is not None else now - (job.elapsed_s or 0)
    location, last = f"on {job_states.format_nodes(job.nodes)}", run.journal.last
    if last is not None and not last.t >= start_time - CLOCK_SKEW_S:
        last = None  # of an earlier start
    state, message = RunState.RUNNING if last else RunState.STARTING, ""
    if isinstance(last, RequeueEvent):
        state, message = RunState.STOPPING, f"{REQUEUE_CAUSE_TEXT.get(last.cause, last.cause)}: about to go on"
    elif isinstance(last, StopEvent):
        failed = run.journal.state is RunState.FAILED
        reason = known_causes.describe_failure(last.failure.fields()) if failed else last.message or last.reason
        state, message = RunState.STOPPING, f"stopping {location}: {reason}"
        if len(job.runs) > 1 and failed:
            message = f"{reason}; to go on once the other runs of job {job.id} have ended"
    elif job.state == "SUSPENDED":
        message = f"suspended {location} by SLURM: it continues by itself"
    end_time = None if job.left_s is None else start_time + job.left_s + (job.elapsed_s or 0)
    left_text = "" if end_time is None else f", {job_states.format_span(end_time - now)} left"
    message = message or f"{state} {location} for {job_states.format_span(now - start_time)}{left_text}"
    if state is not RunState.STOPPING and (excluded_text := _excluded_nodes_text(run)):
        message += f", {excluded_text.strip()}"
    return RunStatus(run, state, message + _straggler_text(run, state), None, job, job.nodes)


def _straggler_text(run: RunSummary, state: RunState) -> str:
    """Return which rank the others wait for, as far as the newest epoch tells; else ""."""
    text = straggler_text(epochs[-1]) if state is RunState.RUNNING and (epochs := run.epochs) else None
    return f"; {text}" if text else ""


def _excluded_nodes_text(run: RunSummary) -> str:
    """Return which nodes its newest job excludes because starts failed there, and why the last of them."""
    excluded = [event for event in run.exclusions if event.t >= run.job.get("submitted", 0)]
    nodes = ", ".join(dict.fromkeys(event.node for event in excluded))
    return f"without {nodes} ({excluded[-1].why}) " if excluded else ""


def _resume_hint(run: RunSummary) -> str:
    if "code_sha256" in run.record and not (run.path / "code").is_dir():
        return f"its code is missing: runyard resume {run.reference} says how to restore it"
    return f"continue with: runyard resume {run.reference}"


def _status_of_ended_run(run: RunSummary, end: StopEvent, nodes: tuple[str, ...], job: JobInfo | None) -> RunStatus:
    state, message, hint = run.journal.state, end.message, _resume_hint(run)
    if state is RunState.INTERRUPTED:
        cause = STOP_CAUSE_TEXT.get(end.cause or "", "")
        if job is not None and job.reason.startswith(SCRIPT_KILLED):  # then SLURM, not a person, stopped its tasks
            cause = f"its batch script was killed: {job.reason}"
        step = run.last_checkpoint_step
        stopped_text = (
            f"stopped at step {step}, saved{run.checkpoint_warning}"
            if step is not None
            else "stopped before the first step"
        )
        message = f"{stopped_text}{f' ({message or cause})' if message or cause else ''}; {hint}"
    elif state is RunState.FAILED:
        message = f"failed: {message if end.given_up else known_causes.describe_failure(end.failure.fields())}"
    return RunStatus(run, state, message, end.cause, nodes=nodes)


def _status_of_vanished_job(run: RunSummary, job: JobInfo | None, nodes: tuple[str, ...]) -> RunStatus:
    """Return the status of a run whose job is gone without an end in the journal, as far as SLURM knows it."""
    hint = _resume_hint(run)
    step = (
        f", saved at step {run.last_checkpoint_step}{run.checkpoint_warning}"
        if run.last_checkpoint_step is not None
        else ""
    )
    end_text = job_states.end_reason(job) if job else ""
    if job is not None and job.state == "CANCELLED":
        waited = not isinstance(run.journal.last, StartEvent)
        reason = job.reason if job.reason == "DependencyNeverSatisfied" else None
        end_text = "cancelled: the job it was to follow failed" if reason else end_text
        return RunStatus(
            run,
            RunState.CANCELLED,
            f"{end_text}{' while it waited' if waited else ''}{step}; {hint}",
            reason,
            job,
            nodes,
        )
    error_line = run.last_error_line()
    sacct_answer = f"its batch script ended: {known_causes.exit_text(job.end)}" if job is not None and job.end else ""
    end_text = end_text or "died without a word" + (
        f": {error_line or sacct_answer}" if error_line or sacct_answer else ""
    )
    return RunStatus(run, RunState.KILLED, f"{end_text}{step}; {hint}", job.state if job else None, job, nodes)


def current_job(run: RunSummary, squeue_answer: JobAnswer) -> JobInfo | None:
    """Return the run's job that squeue shows: a running one, else the first pending one, else the newest.

    SLURM decides which jobs are the run's, and not the run's record: job ids are reused, and a record may be copied.
    """
    jobs = pack.jobs_of(run, squeue_answer)
    next_job = next((job for job in reversed(jobs) if job.pending), None)  # a chain has several
    active = next((job for job in jobs if job.running), None) or next_job
    return active or next((job for job in jobs if not run.slurm_jobs or job.id == run.slurm_jobs[-1]), None)


def accounting_job(run: RunSummary, sacct_answer: JobAnswer) -> JobInfo | None:
    """Return the run's newest job as accounting has it, unless that id belongs to a job of another name."""
    names = {run.id, run.record["sweep"], *(job.get("name") for job in run.record["jobs"])}
    recorded_ids = [str(job["id"]) for job in run.record["jobs"]]
    job = sacct_answer.jobs.get(run.slurm_jobs[-1]) if run.slurm_jobs else None
    return job if job is not None and (job.name in names or job.id not in recorded_ids) else None


def unique_prefixes(ids: Iterable[str], among: Sequence[str]) -> dict[str, str]:
    """Return the shortest prefix of each id that fits no other id in ``among``, by id.

    A prefix has at least an id's date and time, 15 characters; an id that is not in ``among`` is not shortened.
    """
    ordered = sorted(set(among))
    positions = {name: k for k, name in enumerate(ordered)}
    short = {}
    for name in ids:
        if (k := positions.get(name)) is None:
            short[name] = name
            continue
        neighbors = [ordered[j] for j in (k - 1, k + 1) if 0 <= j < len(ordered)]
        shared = [len(os.path.commonprefix((name, other))) for other in neighbors]  # noqa: RUF071  names, not paths
        length = max([15, *(count + 1 for count in shared)])
        short[name] = name[:length]
    return short
