"""Follows a run from the terminal that started it: with a progress bar in a terminal, with plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

import submitit
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from runyard.cluster.slurm import queue
from runyard.printable import printable
from runyard.runs import lease
from runyard.runs.events import StopEvent
from runyard.runs.journal import JournalReader
from runyard.runs.narrative import format_duration, format_event
from runyard.runs.run import Run
from runyard.runs.state import JournalState, RunState
from runyard.runs.store import reference_to
from runyard.runs.summary import RunSummary, read_progress

FOLLOW_POLL_S = 0.5
QUEUE_POLL_S = 5.0  # one SLURM controller serves many users
FINAL_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE",
                "NODE_FAIL", "PREEMPTED"}  # fmt: skip
NO_MESSAGE = "the job ended without recording why: see its log"
DEAD_AFTER_POLLS = 10  # a journal may reach a shared disk some seconds after its writer ended


class TerminalClosed(Exception):
    """The terminal that followed a job was closed (SIGHUP)."""


class JobHandle(Protocol):
    """A started job, on this machine or on SLURM."""

    id: str
    logs: Path
    survives_terminal: bool  # whether it continues without the terminal that follows it

    def has_ended(self) -> bool:
        """Whether it has ended and will not be restarted by itself."""

    def on_ctrl_c(self) -> str:
        """Do what Ctrl-C does to this job, and return the message that says so."""

    def forward_warning(self) -> None:
        """Pass on SLURM's warning, SIGUSR2, which the process that follows the job received."""


class LocalJobHandle:
    """A job on this machine. Ctrl-C asks its tasks to save and stop; a second Ctrl-C leaves them to finish alone."""

    survives_terminal = False

    def __init__(self, job: submitit.Job[str]) -> None:
        self.id, self.logs, self._job = str(job.job_id), Path(job.paths.folder), job

    def has_ended(self) -> bool:
        """Whether the controller has ended and no rank holds the lease: ranks may outlive a killed controller."""
        return bool(self._job.done()) and lease.lease_holder(self.logs.parent) is None

    def on_ctrl_c(self) -> str:
        self._send(signal.SIGTERM)
        return "stopping: saving a checkpoint first (Ctrl-C again to leave it to finish alone)"

    def forward_warning(self) -> None:
        self._send(signal.SIGUSR2)

    def _send(self, number: signal.Signals) -> None:
        """Send a signal to the controller, which passes it on to the tasks, or to rank 0 if the controller is gone."""
        if (pid := RunSummary(self.logs.parent).local_pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class SlurmJobHandle:
    """A job on SLURM's queue. Ctrl-C does not stop it: it was submitted to run without this terminal."""

    survives_terminal = True

    def __init__(self, job_id: str, logs: Path) -> None:
        self.id, self.logs = job_id, logs
        self._asked_at, self._over = -QUEUE_POLL_S, False

    def has_ended(self) -> bool:
        if not self._over and time.monotonic() - self._asked_at >= QUEUE_POLL_S:
            self._asked_at = time.monotonic()
            answer = queue.squeue([self.id])
            # Of a chain all jobs. They have the array's number, which no other job has.
            states = {job.state for job in answer.jobs.values() if self.id in (job.id, job.id.partition("_")[0])}
            self._over = answer.error is None and states <= FINAL_STATES
        return self._over

    def on_ctrl_c(self) -> str:
        run = reference_to(self.logs.parent)  # a job of several runs is not followed
        return f"job {self.id} continues; follow it with `runyard logs -f {run}`, stop it with `runyard cancel {run}`"

    def forward_warning(self) -> None:
        """Do nothing: SLURM has warned the job itself."""


@dataclass(frozen=True)
class JobEnd:
    """How a followed job ended: finished, interrupted or failed, and why. ``user_error``: the user can fix it."""

    state: RunState
    message: str
    user_error: bool = False


class JobFollower:
    """Shows one job of ``run`` in the terminal, beginning after the journal's rows of earlier jobs."""

    def __init__(self, run: Run, console: Console) -> None:
        self._run, self._console = run, console
        self._reader = JournalReader(run.journal_path)
        for _ in self._reader.new_lines():
            pass  # of earlier jobs
        self._bar = Progress(
            TextColumn("[bold]{task.fields[where]}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[pace]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,  # Rich's own control characters would be made printable
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=None, where="starting", pace="")
        self._asked = self._sigterm_seen = self._warning_pending = False
        self._journal = JournalState()

    def follow(self, job: JobHandle) -> JobEnd:
        """Show progress until the job ends. Returns its end by the journal, or a substitute if there is none.

        Ctrl-C or SIGTERM calls ``job.on_ctrl_c``. A second SIGTERM is ignored, because a batch script may receive two:
        SLURM sends one to every process, and W&B's agent passes its own on. SIGUSR1 and SIGUSR2 are for the tasks.

        Raises:
            KeyboardInterrupt: a second Ctrl-C, or the first if the job survives the terminal; the job continues.
            TerminalClosed: the terminal was closed; the job continues.
        """
        warning_handlers = dict.fromkeys((signal.SIGUSR1, signal.SIGUSR2), self._take_warning)
        handlers = {signal.SIGTERM: self._terminate, **warning_handlers}
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            handlers[signal.SIGHUP] = self._hang_up
        previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            with self._bar if self._console.is_terminal else contextlib.nullcontext():
                return self._wait(job)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if not self._asked and not self._sigterm_seen:
            self._sigterm_seen = True
            raise KeyboardInterrupt

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        raise TerminalClosed

    def _take_warning(self, number: int, frame: FrameType | None) -> None:
        self._warning_pending = True

    def _wait(self, job: JobHandle) -> JobEnd:
        polls_after_end = 0
        while True:
            try:
                if self._warning_pending:
                    self._warning_pending = False
                    job.forward_warning()
                ended = job.has_ended()
                self._show()
                state, last = self._journal.state, self._journal.last
                if ended and isinstance(last, StopEvent):
                    return JobEnd(state, last.message, user_error=last.user_error)
                if ended and self._asked and not self._journal.starts:
                    return JobEnd(RunState.INTERRUPTED, "before the first step")
                if ended and polls_after_end == DEAD_AFTER_POLLS:
                    return JobEnd(RunState.FAILED, RunSummary(self._run.path).last_error_line() or NO_MESSAGE)
                polls_after_end += ended
                time.sleep(FOLLOW_POLL_S)
            except KeyboardInterrupt:
                if self._asked:
                    raise
                self._asked = True
                self._console.print(job.on_ctrl_c(), highlight=False)
                if job.survives_terminal:
                    raise

    def _show(self) -> None:
        for event in self._reader.new_events():
            self._journal.advance(event)
            if (line := format_event(event, self._run.config.epochs)) is not None:
                self._console.print(printable(line), highlight=False)
        progress = read_progress(self._run.path)
        with contextlib.suppress(KeyError):  # damaged, or not there yet
            self._bar.update(
                self._task,
                total=progress["steps"],
                completed=progress["step"],
                where=f"epoch {progress['epoch']}/{progress['epochs']}",
                pace=f"{progress['images_per_s']:,.0f} images/s, {format_duration(progress['eta_s'])} left",
            )
