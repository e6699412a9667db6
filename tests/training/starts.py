"""One rank of several starts in turn: ``python -m tests.training.starts STARTS``, with submitit's variables set.

STARTS is a JSON list of [RUN, STOP_AFTER, WITHOUT]: train RUN until so many steps of this start are done (null: to the
end), with the method WITHOUT of ``Learner`` switched off (null: none). Each start makes its process group anew, as a
process of its own would, but torch is imported once.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

from runyard.run import Run
from runyard.stopping import Stop

Start = tuple[Run, int | None, str | None]
ROOT = Path(__file__).resolve().parents[2]
BEFORE = 2  # questions that come before the first step


def train_starts(world_size: int, starts: Sequence[Start], **environment: str) -> None:
    """Train on ``world_size`` ranks of one thread each, and see that every start ended well."""
    what = json.dumps([[str(run.path), stop_after, without] for run, stop_after, without in starts])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.starts", what],
            cwd=ROOT,
            env=os.environ
            | {
                "SUBMITIT_LOCAL_GLOBALID": str(rank),
                "SUBMITIT_LOCAL_LOCALID": str(rank),
                "SUBMITIT_LOCAL_NTASKS": str(world_size),
                "OMP_NUM_THREADS": "1",
            }
            | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    said = [rank.communicate(timeout=1200)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world_size, said


def stop_after(steps: int | None) -> Callable[[], Stop]:
    """Asks to stop from the ``steps``-th step of a start on, at which the question is put; ``BEFORE`` come before."""
    asked = itertools.count(1 - BEFORE)
    return lambda: Stop.USR2 if steps is not None and next(asked) >= steps else Stop.NO


def main() -> None:
    from runyard.training.learner import Learner
    from runyard.training.loop import train

    for number, (run, steps, without) in enumerate(json.loads(sys.argv[1])):
        os.environ["SUBMITIT_LOCAL_JOB_ID"] = f"start{number}"
        with mock.patch.object(Learner, without, return_value=None) if without else mock.MagicMock():
            train(Run.open(run), stop_after(steps))


if __name__ == "__main__":
    main()
