"""The user's own commands at a job's beginning: one that fails ends the job, and says with what."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest

from runyard.cluster.launch.env_setup import checked_lines
from runyard.cluster.monitor.run_status import run_status
from runyard.errors import UserError
from runyard.runs.events import StopEvent
from runyard.runs.run import Run
from runyard.runs.summary import RunSummary
from tests.cluster.launch.test_batch_script import submitted
from tests.support.fake_slurm import NUMBER, FakeSlurm
from tests.support.settings import compose

FAILS = {
    "a command that fails": ("false", 1),
    "a command that is not there": ("module load cuda/12.4", 127),
    "a file that is not there": ("source /nowhere/activate", 1),
    "an exit": ("exit 3", 3),
    "an exit that says all is well": ("exit 0", 0),
    "a quote and a backslash": ("[ 'a\"b\\' = x ]", 1),
}


def with_setup(*lines: str) -> str:
    return f"cluster.env_setup={json.dumps(lines)}"


@pytest.mark.parametrize(("line", "code"), FAILS.values(), ids=FAILS)
def test_a_line_that_fails_ends_the_job_with_the_line_and_its_exit_code(
    small: list[str], slurm: FakeSlurm, line: str, code: int
) -> None:
    quoted = "'" + line.replace("\\", "\\\\").replace("'", "\\'") + "'"
    (run,) = submitted(small, f"cluster.env_setup=['true',{quoted},'touch later']")
    done = slurm.run_script()
    said = f"cluster.env_setup ended the job with exit code {code}: {line}"
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"runyard: {said}"
    assert slurm.calls("srun") == []
    assert not (slurm.folder / "later").exists()
    (slurm.folder / "queue").unlink()
    status = run_status(RunSummary(run.path))
    assert (status.state, status.message) == ("failed", f"failed: {said}")
    assert isinstance(end := RunSummary(run.path).journal.last, StopEvent)
    assert not end.may_be_requeued


@pytest.mark.parametrize("lines", [["false || true"], ["true"], ["[ -e /nowhere ] && false || :"], []])
def test_lines_that_succeed_or_may_fail_let_the_job_begin(small: list[str], slurm: FakeSlurm, lines: list[str]) -> None:
    submitted(small, "cluster.env_setup=[" + ",".join(f"'{line}'" for line in lines) + "]")
    done = slurm.run_script(srun_ends_with=1)
    assert len(slurm.calls("srun")) == 1
    assert "back into the queue" in done.stdout, done.stderr


def test_the_element_of_an_array_records_it_in_its_own_run(small: list[str], slurm: FakeSlurm) -> None:
    runs = submitted(small, "cluster.env_setup=['exit 3']", "seed=0,1")
    slurm.run_script(SLURM_ARRAY_JOB_ID=NUMBER, SLURM_ARRAY_TASK_ID="1")
    assert [RunSummary(run.path).journal.state for run in map(reopened, runs)] == ["waiting", "failed"]


def reopened(run: Run) -> Run:
    return Run.open(run.path)


def test_a_cancellation_meanwhile_is_no_failure_of_a_line(small: list[str], slurm: FakeSlurm) -> None:
    (run,) = submitted(small, "cluster.env_setup=['kill -TERM $$']")
    done = slurm.run_script()
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")
    assert RunSummary(run.path).journal.last is None


@pytest.mark.parametrize("line", ["exec bash", "true && exec bash -l", "if true; then exec zsh; fi", "( exec ls )"])
def test_a_line_that_would_replace_the_batch_script_is_refused_at_once(line: str) -> None:
    with pytest.raises(UserError, match=r"cluster\.env_setup\[0\].* exec replaces the batch script"):
        compose("cluster=slurm", f"cluster.env_setup=['{line}']")


@pytest.mark.parametrize("line", ["exec 2>&1", "exec >>log", "exec {log}>log", "srun_exec now", "echo exec now"])
def test_redirections_and_other_words_stay_allowed(line: str) -> None:
    assert compose("cluster=slurm", f"cluster.env_setup=['{line}']").cluster.env_setup == [line]


def test_doctors_job_says_the_same() -> None:
    script = "\n".join([*checked_lines(["false"]), "echo began"])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "runyard: cluster.env_setup ended the job with exit code 1: false\n"
