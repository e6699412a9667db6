"""Stops a run's jobs after they have saved a checkpoint, and prevents a requeue."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console

from runyard.cluster.monitor.run_status import CLOCK_SKEW_S, run_status
from runyard.cluster.slurm import pack, queue
from runyard.cluster.slurm.queue import JobInfo
from runyard.cluster.slurm.submission import submission_lock
from runyard.errors import UserError
from runyard.printable import printable
from runyard.runs.events import RequeueEvent, StopEvent
from runyard.runs.journal import Journal
from runyard.runs.state import RunState
from runyard.runs.summary import RunSummary
from runyard.slurm_client import RETRY_TIMEOUT_S, JobEnded, QueryError, SlurmRejected, run_with_retry

CANCEL_POLL_S = 1.0
SIGNAL_INTERVAL_S = 5.0  # while a job starts: a signal is lost until its tasks run
CLEAN_ENDS = (RunState.INTERRUPTED, RunState.PRUNED, RunState.CANCELLED, RunState.FINISHED)
KILL_TIMEOUT_S = 90.0  # for scancel to end a job: SLURM's KillWait is 30 s by default


@dataclass(frozen=True)
class CancelResult:
    """The status of a run after it was cancelled.

    Attributes:
        state: As in ``RunStatus``; STOPPING if it did not end.
        message: The state and its reason, as a message.
        step: The step of its newest checkpoint; None if there is none.
        forced: It did not end in time when it was asked to.
    """

    state: RunState
    message: str
    step: int | None
    forced: bool

    @property
    def clean(self) -> bool:
        return not self.forced and self.state in CLEAN_ENDS


def cancel(run: RunSummary, wait_s: float, console: Console) -> CancelResult:
    """Ask ``run`` to save and stop, wait up to ``wait_s`` seconds for that, and then end it by force.

    Raises:
        UserError: it has no pending or running job, it cannot be reached from this machine, or SLURM does not answer.
    """
    with submission_lock(run.path, run.reference):  # no submission is under way meanwhile
        summary = RunSummary(run.path)
        status = run_status(
            summary, wait_s=RETRY_TIMEOUT_S if summary.on_slurm or summary.pending_submission else 0, holds_locks=True
        )
    run = status.run
    if status.error:
        raise UserError(f"run {run.id}: {status.error}")
    if not status.active:
        raise UserError(f"run {run.id} is neither pending nor running: there is nothing to cancel ({status.message})")
    if status.job is not None:
        job: _Target = _SlurmJobs(run) if len(status.job.runs) == 1 else _PackedRun(run, status.job.id)
    elif (pid := run.local_pid()) is not None:
        job = _LocalProcess(pid, run)
    else:
        raise UserError(f"run {run.id} cannot be reached from here ({status.message})", "cancel it where it runs")
    start_time = time.monotonic()
    with _progress(console, run.id) as report_progress:
        while not (ended := job.request_stop()) and time.monotonic() - start_time < wait_s:
            report_progress(run.path, time.monotonic() - start_time)
            time.sleep(CANCEL_POLL_S)
        forced = not ended
        if forced:
            console.print(f"not ended within {wait_s:g} s: ending it by force")
            job.kill()
            start_time = time.monotonic()
            while not (ended := job.over()) and time.monotonic() - start_time < KILL_TIMEOUT_S:
                time.sleep(CANCEL_POLL_S)
    return _result(RunSummary(run.path), ended, forced)


class _Target(Protocol):
    """What is to be stopped."""

    def request_stop(self) -> bool:
        """Repeat the request to whatever may have missed it. Returns whether all has ended."""

    def kill(self) -> None:
        """End it now."""

    def over(self) -> bool:
        """Whether all has ended."""


class _SlurmJobs:
    """All jobs of a run on SLURM: pending jobs are removed from the queue, the tasks of running jobs asked to stop."""

    def __init__(self, run: RunSummary) -> None:
        self._run = run
        self._asking: dict[
            tuple[str, float | None], _SignalTimer
        ] = {}  # by job id and start time: a requeued job gets a new one

    def request_stop(self) -> bool:
        active = self._active()
        for job in active:
            if job.pending:
                _scancel(job.id)
            elif job.state != "COMPLETING":
                self._ask_tasks(job)
        return not active

    def kill(self) -> None:
        for job in self._active():
            _scancel(job.id)

    def over(self) -> bool:
        return not self._active()

    def _ask_tasks(self, job: JobInfo) -> None:
        """Send SIGTERM to the tasks and not to the batch script, which sees how they end and does not requeue.

        In an array its steps are named: while several elements wait, ``scancel --signal`` of the element signals it
        again and again, and does not return (seen in SLURM 22.05).
        """
        if not self._asking.setdefault((job.id, job.start), _SignalTimer()).is_due(self._run.path, job.start or 0):
            return
        if "_" not in job.id:
            _scancel("--signal=TERM", job.id)
        elif steps := queue.srun_steps(job.id):
            with contextlib.suppress(SlurmRejected):  # one has just ended
                run_with_retry("scancel", "--signal=TERM", *steps)

    def _active(self) -> list[JobInfo]:
        """Return the run's active jobs. An empty answer is checked twice: a requeued job leaves the queue briefly."""
        for _ in range(2):
            answer = queue.all_user_jobs(self._run.slurm_jobs, RETRY_TIMEOUT_S)
            if answer.error:
                raise UserError(f"run {self._run.id}: {answer.error}")
            if active := [job for job in pack.jobs_of(self._run, answer) if job.active]:
                return active
            time.sleep(CANCEL_POLL_S)
        return []


class _PackedRun:
    """One of several runs in a job on SLURM, which go on: a file asks its task to stop."""

    def __init__(self, run: RunSummary, job_id: str) -> None:
        self._run, self._job_id = run, job_id

    def request_stop(self) -> bool:
        pack.cancel_file(self._run.path, self._job_id).touch()
        return self.over()

    def kill(self) -> None:
        raise UserError(
            f"run {self._run.id} has not ended, and SLURM can end it only with the other runs of job {self._job_id}",
            f"end them all with `scancel {self._job_id}`, or ask it again with `runyard cancel {self._run.reference}`",
        )

    def over(self) -> bool:
        """Whether it has ended, or has not begun in a job that waits: there it will be left out.

        A job that waits and has no other run left goes from the queue.
        """
        answer = queue.all_user_jobs([self._job_id], RETRY_TIMEOUT_S)
        if answer.error:
            raise UserError(f"run {self._run.id}: {answer.error}")
        job = answer.jobs.get(self._job_id)
        if job is not None and job.pending:
            with contextlib.suppress(UserError, OSError):  # another run was deleted: the job sees to that
                others = [path for path in job.runs if not os.path.samefile(path, self._run.path)]
                if all(pack.has_left(RunSummary(path), job.id) for path in others):
                    _scancel(job.id)
            return True
        run = RunSummary(self._run.path)
        ended = run.recorded_end is not None and run.lease_holder_text() is None
        return ended or job is None or not job.active


class _LocalProcess:
    """The run's controller process on this machine. Its tasks end with it, or it with them."""

    def __init__(self, pid: int, run: RunSummary) -> None:
        self._pid, self._run = pid, run
        self._asking = _SignalTimer()

    def request_stop(self) -> bool:
        if self._asking.is_due(self._run.path, self._run.job.get("submitted", 0)):
            _kill(self._pid, signal.SIGTERM)
        return self.over()

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split():
                _kill(int(child), signal.SIGKILL)
        time.sleep(CANCEL_POLL_S)  # the controller sees that, and records the end
        if not self.over():
            _kill(self._pid, signal.SIGKILL)

    def over(self) -> bool:
        return self._run.local_pid() != self._pid


class _SignalTimer:
    """Decides when to signal the tasks of one job, by the run's journal since the job's start.

    Until training has started a signal may reach no task, so it is sent again. After that one must suffice: tasks stop
    handling signals once they have saved, and another would end them like a crash.
    """

    def __init__(self) -> None:
        self._at, self._trained = float("-inf"), False

    def is_due(self, run: Path, start_time: float) -> bool:
        summary = RunSummary(run)
        last = summary.journal.last
        if isinstance(last, (StopEvent, RequeueEvent)) and last.t >= start_time - CLOCK_SKEW_S:
            return False
        is_training = any(start.t >= start_time - CLOCK_SKEW_S for start in summary.starts)
        if self._trained or (not is_training and time.monotonic() - self._at < SIGNAL_INTERVAL_S):
            return False
        self._at, self._trained = time.monotonic(), is_training
        return True


def _result(run: RunSummary, ended: bool, forced: bool) -> CancelResult:
    """Return the run's status. Records the stop in its journal if no process of the run was left to do so."""
    step = run.last_checkpoint_step
    if not ended:
        return CancelResult(
            RunState.STOPPING, f"has not ended {KILL_TIMEOUT_S:g} s after scancel: see `squeue`", step, forced
        )
    if run.recorded_end is None:
        message = "ended by force" if forced else "cancelled before its tasks had begun"
        Journal(run.journal_path).write("stop", reason="interrupted", message=message, cause="TERM")
        run.refresh()
    status = run_status(run)
    return CancelResult(status.state, status.message, step, forced)


def _scancel(*arguments: str) -> None:
    try:
        with contextlib.suppress(JobEnded):
            run_with_retry("scancel", *arguments)
    except QueryError as error:
        raise UserError(f"scancel {' '.join(arguments)}: {error}") from None


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it has ended
        pass
    except PermissionError:
        raise UserError(f"process {pid} is another user's: only they can cancel this run") from None


@contextlib.contextmanager
def _progress(console: Console, run_id: str) -> Iterator[Callable[[Path, float], None]]:
    """Print what is waited for: updated in place in a terminal, once elsewhere."""
    line = f"run {run_id}: asked to save and stop"
    if not console.is_terminal:
        console.print(line)
        yield lambda path, seconds: None
        return
    with console.status(line) as status:
        yield lambda path, seconds: status.update(f"{line}, {seconds:.0f} s ago; step {_step(path)}")


def _step(path: Path) -> str:
    return printable(str(RunSummary(path).progress.get("step", "–")))
