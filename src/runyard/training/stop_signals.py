"""Why a training is asked to stop, and how a task hears of it. No torch: it must listen before that is imported."""

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

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1)  # some sites preempt with USR1
HANG_EXIT_MARGIN_S = 5  # before the time limit: who has not ended by then hangs
END_TIME_POLL_S = (
    300.0  # at most, for the time limit: it is raised and lowered by hand, and SLURM warns of a lowered one
)


class StopReason(enum.IntEnum):
    """What asked for it. Of several the highest counts, on all ranks: what a person wants comes before a clock."""

    NO = 0
    TIME_LIMIT = 1  # the run's own clock, before the job's time limit
    USR2 = 2  # SLURM's warning of the time limit or of a preemption
    TERM = 3  # scancel, `runyard cancel`, Ctrl-C; also a preemption without a warning, which SLURM requeues itself

    @property
    def journal_text(self) -> str | None:
        """As the journal has it."""
        return {StopReason.TIME_LIMIT: "time limit", StopReason.USR2: "USR2", StopReason.TERM: "TERM"}.get(self)


class TrainingStopped(BaseException):
    """A stop that ended at once what was under way, since nothing of the run could be lost. Not to be caught as an
    error of that."""

    def __init__(self, stop: StopReason) -> None:
        super().__init__(f"asked to stop ({stop.journal_text})")
        self.stop = stop


class StopFlag:
    """Says why this task should stop, once something asked it to. A handler notes that and does nothing else: the loop
    asks at step boundaries. (Before the first step and after the last ``interruptible`` ends what takes long.)

    A signal that came while the task was starting was held (cluster/job/task.py) and is heard here.
    Handlers are reset in children, which inherit them over a fork and would otherwise answer signals meant for us.
    SIGQUIT has all threads' stacks printed: so whoever finds that this process hangs learns where.
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

        Where ranks hang, none can. Then this process says where it stands and dies just before the limit, so that the
        batch script outlives srun: at the limit SLURM would end both, and nobody would requeue the job.

        One rank's clock is enough, since all stop with it; it asks SLURM now and then whether the limit was changed.
        """
        if (end := env.get("SLURM_JOB_END_TIME", "")).isdigit():
            self._set_end_time(int(end), margin_s)
        if job := env.get("SLURM_JOB_ID"):
            threading.Thread(target=self._poll_end_time, args=(job, margin_s), name="time limit", daemon=True).start()

    def ignore_signals(self) -> None:
        """Hear no request any more, also while Python ends, when handlers of its own are gone already."""
        _forget_handlers()

    def _record_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop_reason = max(self._stop_reason, StopReason.TERM if number == signal.SIGTERM else StopReason.USR2)

    def _set_end_time(self, end: float, margin_s: float) -> None:
        """The job ends then (unix s). A time that has passed is none: an answer that was not understood."""
        if (left_s := end - time.time()) <= 0:
            return
        self._stop_time = end - margin_s
        faulthandler.cancel_dump_traceback_later()
        if HANG_EXIT_MARGIN_S < left_s < threading.TIMEOUT_MAX:
            faulthandler.dump_traceback_later(left_s - HANG_EXIT_MARGIN_S, exit=True, file=2)

    def _poll_end_time(self, job: str, margin_s: float) -> None:
        """Once more shortly before this clock would stop the run."""
        with contextlib.suppress(QueryError):  # a container without SLURM's commands: what is known stays
            while True:
                if (end := end_time.query_end_time(job)) is not None:
                    self._set_end_time(end, margin_s)
                time.sleep(min(END_TIME_POLL_S, max(20.0, (self._stop_time - time.time()) / 2)))


@contextlib.contextmanager
def interruptible(should_stop: Callable[[], StopReason]) -> Iterator[None]:
    """Within the block TERM ends it. Only where nothing is under way that must be finished.

    SLURM's warning and the clock do not: they wait for the first step, at which the run is saved. Where a start takes
    longer than its time limit leaves it, a run that ended before would never get further.

    Raises:
        Stopped: it came, or had come before.
    """
    handler = signal.getsignal(signal.SIGTERM)

    def hear(number: int, frame: FrameType | None) -> None:
        if callable(handler):
            handler(number, frame)
        raise TrainingStopped(should_stop())

    try:
        if callable(handler):
            signal.signal(signal.SIGTERM, hear)
        if (stop := should_stop()) is StopReason.TERM:
            raise TrainingStopped(stop)
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within the block a command ends of SIGTERM and of SIGHUP (a connection that was lost) as of Ctrl-C: it takes back
    what it had begun. What is ignored, by nohup say, stays so."""
    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _forget_handlers() -> None:
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
