"""Why a training is asked to stop, and how a task hears of it. No torch: it must listen before that is imported."""

from __future__ import annotations

import contextlib
import enum
import faulthandler
import os
import signal
import time
from collections.abc import Iterator, Mapping
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1)
UNSAVED_AT_S = 5  # before the time limit: who has not ended by then hangs


class Stop(enum.IntEnum):
    """What asked for it. Of several the highest counts, on all ranks: what a person wants comes before a clock."""

    NO = 0
    TIME_LIMIT = 1  # the run's own clock, before the job's time limit
    USR2 = 2  # SLURM's warning of the time limit or of a preemption
    TERM = 3  # scancel, `runyard cancel`, Ctrl-C; also a preemption without a warning, which SLURM requeues itself

    @property
    def words(self) -> str | None:
        """As the journal has it."""
        return {Stop.TIME_LIMIT: "time limit", Stop.USR2: "USR2", Stop.TERM: "TERM"}.get(self)


class StopFlag:
    """Says why this task should stop, once something asked it to. A handler notes that and does nothing else: the loop
    asks at step boundaries.

    A signal that came while the task was starting was held (cluster/task.py) and is heard here.
    Handlers are reset in children, which inherit them over a fork and would otherwise answer signals meant for us.
    """

    def __init__(self) -> None:
        self._asked = Stop.NO
        self._stop_at: float | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        os.register_at_fork(after_in_child=_forget_handlers)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def __call__(self) -> Stop:
        if not self._asked and self._stop_at is not None and time.time() >= self._stop_at:
            return Stop.TIME_LIMIT
        return self._asked

    def before_the_limit(self, env: Mapping[str, str], margin_s: float) -> None:
        """Also stop ``margin_s`` before the job's end (SLURM_JOB_END_TIME, unix s): a signal may never come.

        Where ranks hang, none can. Then this process says where it stands and dies just before the limit, so that the
        batch script outlives srun: at the limit SLURM would end both, and nobody would requeue the job.
        """
        if (end := env.get("SLURM_JOB_END_TIME", "")).isdigit():
            self._stop_at = int(end) - margin_s
            if (left_s := int(end) - UNSAVED_AT_S - time.time()) > 0:
                faulthandler.dump_traceback_later(left_s, exit=True, file=2)

    def ignore(self) -> None:
        """Hear no request any more, also while Python ends, when handlers of its own are gone already."""
        _forget_handlers()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = max(self._asked, Stop.TERM if number == signal.SIGTERM else Stop.USR2)


@contextlib.contextmanager
def as_ctrl_c() -> Iterator[None]:
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
