"""Stop reasons, and the signal handlers that record them. No torch: the handlers must be set before its import."""

from __future__ import annotations

import contextlib
import enum
import faulthandler
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from runyard.slurm_client import QueryError
from runyard.training import end_time

HANG_EXIT_MARGIN_S = 5  # before the time limit: a process that has not ended by then counts as hung
END_TIME_POLL_S = 300.0  # at most: administrators may change the time limit, and SLURM warns only of a lowered one


class StopReason(enum.IntEnum):
    """What requested a stop. Of several the highest counts, on all ranks: a person's request comes before a clock's."""

    NO = 0
    TIME_LIMIT = 1  # the run's own clock, before the job's time limit
    USR2 = 2  # SLURM's warning of the time limit or of a preemption
    USR1 = 3  # with which some sites preempt
    TERM = 4  # scancel, `runyard cancel`, Ctrl-C; also a preemption without a warning, which SLURM requeues itself

    @property
    def journal_text(self) -> str | None:
        """The reason's name in the journal, or None for ``NO``."""
        return {StopReason.NO: None, StopReason.TIME_LIMIT: "time limit"}.get(self, self.name)


SIGNAL_REASONS = {signal.SIGTERM: StopReason.TERM, signal.SIGUSR2: StopReason.USR2, signal.SIGUSR1: StopReason.USR1}
STOP_SIGNALS = tuple(SIGNAL_REASONS)


class TrainingStopped(BaseException):
    """Raised to stop immediately where no progress can be lost.

    A BaseException, so that the interrupted code does not handle it as an error of its own.
    """

    def __init__(self, stop: StopReason) -> None:
        super().__init__(f"asked to stop ({stop.journal_text})")
        self.stop = stop


class StopFlag:
    """Returns why this task should stop, if something has asked it to.

    A signal handler only records the reason: the trainer asks for it between steps. (Before the first step and after
    the last, ``interruptible`` ends slow work.)

    A signal that came while the task was starting was blocked (cluster/job/task.py) and is delivered here.
    Handlers are reset in children, which inherit them over a fork and would react to signals meant for this process.
    SIGQUIT prints the stacks of all threads, to show where a hung process is.
    """

    def __init__(self) -> None:
        self._stop_reason = StopReason.NO
        self._stop_time = math.inf
        for number in STOP_SIGNALS:
            signal.signal(number, self._record_signal)
        faulthandler.register(signal.SIGQUIT, file=2)
        os.register_at_fork(after_in_child=_forget_handlers)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def __call__(self) -> StopReason:
        if not self._stop_reason and time.time() >= self._stop_time:
            return StopReason.TIME_LIMIT
        return self._stop_reason

    def watch_time_limit(self, env: Mapping[str, str], margin_s: float) -> None:
        """Also stop ``margin_s`` before the job's end (SLURM_JOB_END_TIME, unix s): a signal may never come.

        If ranks hang, none can stop at a step. Then this process prints its stacks and exits just before the limit, so
        that the batch script outlives srun: at the limit SLURM would kill both, and the job would not be requeued.

        One rank's clock is enough, since all ranks stop with it. It regularly asks SLURM whether the limit has changed.
        """
        if (end := env.get("SLURM_JOB_END_TIME", "")).isdigit():
            self._set_end_time(int(end), margin_s)
        if job := env.get("SLURM_JOB_ID"):
            threading.Thread(target=self._poll_end_time, args=(job, margin_s), name="time limit", daemon=True).start()

    def ignore_signals(self) -> None:
        """Ignore stop signals from now on, also while Python exits and its own handlers are already gone."""
        _forget_handlers()

    def _record_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop_reason = max(self._stop_reason, SIGNAL_REASONS[signal.Signals(number)])

    def _set_end_time(self, end: float, margin_s: float) -> None:
        """Set the job's end (unix s). A time in the past is ignored: SLURM's answer was misread."""
        if (left_s := end - time.time()) <= 0:
            return
        self._stop_time = end - margin_s
        faulthandler.cancel_dump_traceback_later()
        if HANG_EXIT_MARGIN_S < left_s < threading.TIMEOUT_MAX:
            faulthandler.dump_traceback_later(left_s - HANG_EXIT_MARGIN_S, exit=True, file=2)

    def _poll_end_time(self, job: str, margin_s: float) -> None:
        """Ask SLURM for the job's end again and again, the last time shortly before this clock would stop the run."""
        with contextlib.suppress(QueryError):  # in a container without SLURM's commands: keep the known end
            while True:
                if (end := end_time.query_end_time(job)) is not None:
                    self._set_end_time(end, margin_s)
                time.sleep(min(END_TIME_POLL_S, max(20.0, (self._stop_time - time.time()) / 2)))


@contextlib.contextmanager
def interruptible(get_stop_reason: Callable[[], StopReason]) -> Iterator[None]:
    """Let SIGTERM end the block at once. Only for work that need not be finished.

    SLURM's warning and the clock do not end it: they wait for the first step, where the run is saved. Otherwise a run
    whose start takes longer than its time limit allows would never make progress.

    Raises:
        TrainingStopped: the signal came, or had come before.
    """
    handler = signal.getsignal(signal.SIGTERM)

    def raise_stopped(number: int, frame: FrameType | None) -> None:
        if callable(handler):
            handler(number, frame)
        raise TrainingStopped(get_stop_reason())

    try:
        if callable(handler):
            signal.signal(signal.SIGTERM, raise_stopped)
        if (stop := get_stop_reason()) is StopReason.TERM:
            raise TrainingStopped(stop)
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP (a lost connection) act like Ctrl-C: a command undoes unfinished work.

    A signal that is ignored, for example because of nohup, stays ignored.
    """
    handled = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, signal.default_int_handler) for number in handled}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _forget_handlers() -> None:
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
