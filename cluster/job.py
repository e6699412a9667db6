"""What each task of a job runs: the only glue between submitit and training."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # scancel or Ctrl-C; the time limit or a preemption


@dataclass
class TrainJob:
    """Trains the run in ``run_dir``. A plain path is all that is pickled: everything else is read where it runs."""

    run_dir: str

    def __call__(self) -> str:
        """Train, and return how it ended: ``finished`` or ``interrupted``."""
        stop = StopFlag()
        from runyard.errors import UserError
        from runyard.run import Run
        from runyard.training.last_word import RankLost
        from runyard.training.learner import Diverged
        from runyard.training.loop import train

        try:
            return str(train(Run.open(Path(self.run_dir)), stop))
        except (UserError, Diverged, RankLost) as error:
            print(f"runyard: {error}", file=sys.stderr, flush=True)
            sys.exit(2 if isinstance(error, UserError) else 1)


class StopFlag:
    """True once a signal asked this task to stop. The handler does nothing else: the loop asks at step boundaries.

    A signal that came while the task was starting was held (cluster/task.py) and is heard here.
    Handlers are reset in children, which inherit them over a fork and would otherwise answer signals meant for us.
    """

    def __init__(self) -> None:
        self._asked = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        os.register_at_fork(after_in_child=_forget_handlers)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def __call__(self) -> bool:
        return self._asked

    def ignore(self) -> None:
        """Hear no request any more, also while Python ends, when handlers of its own are gone already."""
        _forget_handlers()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


def _forget_handlers() -> None:
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
