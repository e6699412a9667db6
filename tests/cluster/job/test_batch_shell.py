"""A batch script whose own shell is killed is no cancellation: the run's rank 0 requeues the job in its place."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runyard.cluster.job.batch_shell import BatchShell
from runyard.config.schema import Config
from runyard.runs.journal import Journal, read_events
from runyard.runs.run import Run
from runyard.runs.state import JournalState
from tests.support.fake_slurm import FakeSlurm

KILLED = "JobId=12 JobName=x\n   JobState=COMPLETING Reason=RaisedSignal:9(Killed) Dependency=(null)\n"
KILLED += "   StartTime=2020-01-01T00:00:00 EndTime=2020-01-02T00:00:00\n"


@pytest.fixture
def run(tmp_path: Path, make_config: Callable[..., Config]) -> Run:
    return Run.create(make_config("experiment=starter", "cluster=slurm", f"runs_dir={tmp_path / 'runs'}"), [])


@pytest.fixture
def script(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """The shell of job 12's batch script, of which this process is the only task."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    with subprocess.Popen(["sleep", "600"]) as process:
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        monkeypatch.setenv("RUNYARD_BEGAN", "0")
        monkeypatch.setenv("RUNYARD_BATCH_SHELL", f"{process.pid}@{socket.gethostname()}")
        slurm.says("shown", KILLED)
        yield process
        process.kill()


def ended(run: Run, cause: str, shell: BatchShell | None) -> JournalState:
    """The journal's word after the tasks have saved and ended."""
    Journal(run.journal_path).write("stop", reason="interrupted", message="", cause=cause)
    assert shell is not None
    shell.requeue_if_killed(run)
    return JournalState.of(read_events(run.journal_path))


def test_the_job_of_a_shell_that_was_killed_is_requeued(
    run: Run, slurm: FakeSlurm, script: subprocess.Popen[bytes]
) -> None:
    shell = BatchShell.find()
    script.kill()
    script.wait()
    state = ended(run, "TERM", shell)
    assert (state.state, state.message) == ("waiting", "crash")
    assert slurm.calls("scontrol")[-1] == "scontrol requeue 12"


def test_where_slurm_refuses_the_run_has_failed_and_was_not_cancelled(
    run: Run, slurm: FakeSlurm, script: subprocess.Popen[bytes]
) -> None:
    slurm.program("sleep", "exec /bin/sleep 0.02\n")
    slurm.says("broken", "Requested operation is presently disabled\n")
    shell = BatchShell.find()
    script.kill()
    script.wait()
    ended(run, "TERM", shell)
    assert "the shell of the job's batch script was killed" in run.journal_path.read_text()
    assert "could not be requeued (Requested operation is presently disabled)" in run.journal_path.read_text()


@pytest.mark.parametrize(("cause", "killed"), [("TERM", False), ("USR2", True)])
def test_a_cancelled_job_and_one_that_its_own_script_requeues_are_left_alone(
    run: Run, slurm: FakeSlurm, script: subprocess.Popen[bytes], cause: str, killed: bool
) -> None:
    shell = BatchShell.find()
    if killed:
        script.kill()
        script.wait()
    assert ended(run, cause, shell).state == "interrupted"
    assert slurm.calls("scontrol") == []


def test_other_ranks_leave_it_to_rank_0(
    run: Run, slurm: FakeSlurm, script: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = {"STEP_ID": "0", "PROCID": "1", "NTASKS": "2", "LOCALID": "0", "STEP_TASKS_PER_NODE": "1(x2)", "NODEID": "1"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    shell = BatchShell.find()
    script.kill()
    script.wait()
    assert ended(run, "TERM", shell).state == "interrupted"
    assert slurm.calls("scontrol") == []


@pytest.mark.parametrize("where", ["", "1@other-node", "999999999@{here}"])
def test_a_shell_that_is_not_seen_is_never_taken_for_a_killed_one(
    script: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("RUNYARD_BATCH_SHELL", where.format(here=socket.gethostname()))
    assert BatchShell.find() is None
