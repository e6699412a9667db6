"""When a job that a terminal follows is over: what SLURM says of it, however it ended, and whether it answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import queue
from cluster.attach import SlurmJob
from tests.cluster.fake_slurm import NUMBER, FakeSlurm


def over(slurm: FakeSlurm, state: str) -> bool:
    slurm.says("known", f"{NUMBER}|{state}|None|0:01|9:00|N/A|n1|run\n")
    return SlurmJob(NUMBER, Path("logs")).over()


@pytest.mark.parametrize("state", ["COMPLETED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "CANCELLED"])
def test_it_is_over_however_it_ended(slurm: FakeSlurm, state: str) -> None:
    assert over(slurm, state)
    assert not over(slurm, "RUNNING"), "the control"
    assert not over(slurm, "PENDING"), "the control"


def test_a_controller_that_does_not_answer_ends_nothing_and_holds_nothing_up(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.program("squeue", "exec sleep 60\n")
    monkeypatch.setattr(queue, "ANSWER_TIMEOUT_S", 0.2)
    assert not SlurmJob(NUMBER, Path("logs")).over()
