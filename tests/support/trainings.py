"""Real trainings of small runs: two gloo ranks, forked from a process that has imported everything."""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
from typing import Any

from runyard.runs.run import Run
from tests.support.settings import PATIENCE_S
from tests.support.zygote import Fork, Zygote


@functools.cache
def zygote() -> Zygote:
    """This process's own: what it forks need not import torch, which takes seconds each time."""
    made = Zygote()
    atexit.register(made.close)
    return made


class Ranks:
    """The processes that train one run together.

    They are forks of ``zygote``, but for what must import everything anew: ``command``, in place of `runyard train`.
    """

    def __init__(
        self,
        run: Run,
        world_size: int,
        job: str,
        environment: dict[str, str] | None = None,
        command: list[str] | None = None,
    ) -> None:
        self.run = run
        self._said = [run.path.parent / f"said-{run.id}-{job}-{rank}" for rank in range(world_size)]
        self.processes = [
            self._start(rank, command, {
                "SUBMITIT_LOCAL_GLOBALID": str(rank),
                "SUBMITIT_LOCAL_LOCALID": str(rank),
                "SUBMITIT_LOCAL_NTASKS": str(world_size),
                "SUBMITIT_LOCAL_JOB_ID": job,
                "OMP_NUM_THREADS": "1",
                **(environment or {}),
            })
            for rank in range(world_size)
        ]  # fmt: skip

    def _start(
        self, rank: int, command: list[str] | None, environment: dict[str, str]
    ) -> subprocess.Popen[bytes] | Fork:
        said = self._said[rank]
        if command is None:
            return zygote().fork(said, ("tests.support.zygote:say", "train", str(self.run.path)), environment)
        with said.open("wb") as log:
            return subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)

    def wait(self, timeout_s: float = PATIENCE_S) -> list[int]:
        """Exit codes by rank; what they said is in ``errors``."""
        codes = [process.wait(timeout_s) for process in self.processes]
        self.errors = [said.read_text() for said in self._said]
        return codes


def train(run: Run, world_size: int = 2, job: str = "first", environment: dict[str, str] | None = None) -> None:
    """Train to the end, and see that it ended well."""
    ranks = Ranks(run, world_size, job, environment)
    assert ranks.wait() == [0] * world_size, ranks.errors


def final_state(run: Run) -> dict[str, Any]:
    """What the last checkpoint holds, less what is no result: times."""
    from runyard.training import checkpoint

    newest = checkpoint.newest_checkpoint(run.checkpoints)
    assert newest is not None
    state = newest.load()
    del state["clock_s"]
    return state


def same(a: Any, b: Any) -> bool:
    """Bit equality of nested states."""
    import torch

    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
