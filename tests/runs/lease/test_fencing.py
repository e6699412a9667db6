"""Who has lost the lease writes nothing more, whenever it was stopped and whenever it wakes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from runyard.runs import journal
from runyard.runs.lease import LeaseLost
from runyard.runs.run import Run
from runyard.tracking.recorder import Recorder
from tests.support.settings import PATIENCE_S
from tests.support.waiting import until


def content(run: Run) -> dict[str, str]:
    """Every file of the run that is the truth about it, and its sha256."""
    files = [run.journal_path, run.path / "progress.json", *run.checkpoints.glob("step_*/*")]
    return {str(p.relative_to(run.path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.exists()}


def begun(run: Run, what: str) -> bool:
    return any(run.checkpoints.glob("step_*")) if what == "checkpoint" else (run.path / "progress.json").exists()


def stopped(process: subprocess.Popen[str]) -> None:
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


WRITE = """
import itertools, os, signal, sys
from runyard.runs.run import Run
from runyard.runs.lease import Lease
TAMPER
from runyard.tracking.recorder import Recorder
run = Run.open(sys.argv[1])
record = Recorder(run, active=True, lease=run.acquire_lease())
if "checkpoint" in sys.argv[2]:
    import torch
    from runyard.training.checkpoint import CheckpointSaver
    saver = CheckpointSaver(run.checkpoints, 3, True, check_lease=record.check_lease)
print("held", flush=True)
for step in itertools.count():
    if "checkpoint" in sys.argv[2]:
        saver.save({"step": step, "weight": torch.full((1000,), step)}, step, float(step), wait=True)
    if "journal" in sys.argv[2]:
        record.log_event("checkpoint", step=step)
        record.progress(step=step)
"""
NO_FENCE = "Lease.check = lambda self: None"
# stops itself in the worst moment: when it has just been told that it may write
STOP_AFTER_CHECK = """
real = Lease.check
def check(self):
    real(self)
    if os.path.exists(os.path.join(sys.argv[1], "stop")):
        os.kill(os.getpid(), signal.SIGSTOP)
Lease.check = check
"""


def test_an_orphan_that_wakes_after_another_took_over_writes_nothing(
    run: Run, start: Callable[..., Any], job: Callable[..., None]
) -> None:
    orphan = start(WRITE.replace("TAMPER", ""), run.path, "checkpoint, journal", SLURM_JOB_ID="12")
    until(lambda: begun(run, "journal") and begun(run, "checkpoint"))
    os.kill(orphan.pid, signal.SIGSTOP)
    stopped(orphan)
    job(12, restarts=1)
    lease = run.acquire_lease()
    before = content(run)
    os.kill(orphan.pid, signal.SIGCONT)
    _, said = orphan.communicate(timeout=PATIENCE_S)
    assert orphan.returncode == 1
    assert content(run) == before
    assert f"was taken over by process {os.getpid()} on " in said
    lease.check()
    lease.release()


def test_without_the_check_an_orphan_writes_on(run: Run, start: Callable[..., Any], job: Callable[..., None]) -> None:
    """The negative control: the processes are such as would be seen to write."""
    orphan = start(WRITE.replace("TAMPER", NO_FENCE), run.path, "journal", SLURM_JOB_ID="12")
    until(lambda: begun(run, "journal"))
    os.kill(orphan.pid, signal.SIGSTOP)
    stopped(orphan)
    job(12, restarts=1)
    run.acquire_lease()
    before = content(run)
    os.kill(orphan.pid, signal.SIGCONT)
    until(lambda: content(run) != before)


@pytest.mark.parametrize("put_aside", [True, False], ids=["as it is", "control"])
@pytest.mark.parametrize("what", ["journal", "checkpoint"])
def test_a_write_that_passed_its_check_just_before_reaches_nothing(
    run: Run,
    start: Callable[..., Any],
    job: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    put_aside: bool,
) -> None:
    orphan = start(WRITE.replace("TAMPER", STOP_AFTER_CHECK), run.path, what, SLURM_JOB_ID="12")
    until(lambda: begun(run, what))
    (run.path / "stop").touch()
    stopped(orphan)
    if what == "checkpoint":  # the check before a save's beginning, or the one before its end
        while not list(run.checkpoints.glob(".making-*/manifest.json")):
            os.kill(orphan.pid, signal.SIGCONT)
            stopped(orphan)
    if not put_aside:
        monkeypatch.setattr(Run, "_fence_previous_holder", lambda run: None)
    job(12, restarts=1)
    lease = run.acquire_lease()
    (run.path / "stop").unlink()
    before = content(run)
    os.kill(orphan.pid, signal.SIGCONT)
    orphan.communicate(timeout=PATIENCE_S)
    assert orphan.returncode == 1
    assert (content(run) == before) == put_aside
    Recorder(run, active=True, lease=lease).log_event("warning", message="mine")
    assert journal.read_journal(run.journal_path)[1] == 0, "no line was broken"


def test_who_lost_the_lease_writes_not_even_that_it_ended(run: Run, job: Callable[..., None]) -> None:
    job(12)
    record = Recorder(run, active=True, lease=run.acquire_lease())
    record.log_event(
        "start", step=0, resumed_from=None, parameters=1, precision="fp32", world_size=1, device_name="cpu"
    )
    job(12, restarts=1)
    lease = run.acquire_lease()
    before = content(run)
    with pytest.raises(LeaseLost):
        record.log_event("stop", reason="failed", message="x")
    with pytest.raises(LeaseLost):
        record.progress(step=1)
    assert content(run) == before
    assert not list(run.path.glob(".progress*"))
    lease.release()


def test_taking_over_keeps_every_row(run: Run, job: Callable[..., None]) -> None:
    job(12)
    first = Recorder(run, active=True, lease=run.acquire_lease())
    first.log_event("warning", message="first")
    job(12, restarts=1)
    second = Recorder(run, active=True, lease=run.acquire_lease())
    second.log_event("warning", message="second")
    assert [row["message"] for row in journal.read_journal(run.journal_path)[0]] == ["first", "second"]
