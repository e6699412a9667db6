"""Ranks of several starts in turn: each start makes its process group anew, as a process of its own would."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from runyard.runs.run import Run
from runyard.training.stop_signals import StopReason
from tests.support.trainings import zygote

# Train a run until so many steps of this start are done (None: to the end),
# with a method of ``TrainState`` switched off.
Start = tuple[Run, int | None, str | None]
BEFORE = 2  # questions that come before the first step


def train_starts(folder: Path, world_size: int, starts: Sequence[Start], **environment: str) -> None:
    """Train on ``world_size`` ranks of one thread each, which say what they say in ``folder``, and see that every
    start ended well."""
    what = json.dumps([[str(run.path), stop_after, without] for run, stop_after, without in starts])
    said = [folder / f"rank-{rank}" for rank in range(world_size)]
    ranks = [
        zygote().fork(said[rank], ("tests.support.starts:take", what), {
            "SUBMITIT_LOCAL_GLOBALID": str(rank),
            "SUBMITIT_LOCAL_LOCALID": str(rank),
            "SUBMITIT_LOCAL_NTASKS": str(world_size),
            **environment,
        })
        for rank in range(world_size)
    ]  # fmt: skip
    codes = [rank.wait() for rank in ranks]
    assert codes == [0] * world_size, [log.read_text() for log in said]


def stop_after(steps: int | None) -> Callable[[], StopReason]:
    """Asks to stop from the ``steps``-th step of a start on, at which the question is put; ``BEFORE`` come before."""
    asked = itertools.count(1 - BEFORE)
    return lambda: StopReason.USR2 if steps is not None and next(asked) >= steps else StopReason.NO


def take(starts: str) -> None:
    """In a rank."""
    from runyard.training.train_state import TrainState
    from runyard.training.trainer import train

    for number, (run, steps, without) in enumerate(json.loads(starts)):
        os.environ["SUBMITIT_LOCAL_JOB_ID"] = f"start{number}"
        with mock.patch.object(TrainState, without, return_value=None) if without else mock.MagicMock():
            train(Run.open(run), stop_after(steps))
