"""What becomes of a submission that sbatch answers wrongly, twice or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from runyard.cluster.launch import submit as launcher
from runyard.cluster.monitor.run_status import run_status
from runyard.errors import UserError
from runyard.runs.run import Run
from runyard.runs.summary import RunSummary
from tests.cluster.launch.test_batch_script import submitted
from tests.support.fake_slurm import NUMBER, SBATCH, FakeSlurm

ANSWERS = {
    "a banner that names a job": ("banner", "Downtime: job 42 and later will be held\n"),
    "no word at all": ("silent", ""),
    "an error after the job was queued": ("queues anyway", ""),
}


@pytest.mark.parametrize(("file", "content"), ANSWERS.values(), ids=ANSWERS)
def test_whatever_sbatch_says_the_job_that_runs_the_submissions_script_is_the_runs(
    small: list[str], slurm: FakeSlurm, file: str, content: str
) -> None:
    slurm.says(file, content)
    if file == "queues anyway":
        slurm.says("refusal", "sbatch: error: Socket timed out on send/recv operation\n")
    (run,) = submitted(small)
    assert [job["id"] for job in run.record["jobs"]] == [NUMBER]
    assert len(slurm.submissions) == 1
    assert slurm.queue == [run.id]


def test_a_job_that_nobody_can_tell_of_keeps_its_run_which_finds_it_later(
    small: list[str], slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller is gone when sbatch has been heard, for longer than anybody waits."""
    monkeypatch.setattr("runyard.slurm_client.RETRY_TIMEOUT_S", 0.0)
    slurm.program("sbatch", SBATCH.replace('echo "Submitted', 'touch "$here/down"; echo "Submitted'))
    with pytest.raises(UserError, match="may be on the queue, and SLURM does not say"):
        submitted(small)
    (path,) = (tmp_path / "runs").glob("2*")
    assert Run.open(path).record["jobs"] == []
    (slurm.folder / "down").unlink()
    now = run_status(RunSummary(path))
    assert (now.state, now.job and now.job.id) == ("waiting", NUMBER)
    assert [job["id"] for job in Run.open(path).record["jobs"]] == [NUMBER]
    assert "submission" not in Run.open(path).record


def test_a_submission_that_sbatch_heard_twice_is_one_job(
    small: list[str], slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = "; ".join([f'printf \'%s|twice||%s\\n\' {number} "$1" >> "$here/queue"' for number in (21, 20)])
    slurm.program("sbatch", f"case $1 in --*) exit ;; esac; {twice}\n")
    (run,) = submitted(small)
    assert [job["id"] for job in run.record["jobs"]] == ["20"]
    assert slurm.calls("scancel") == ["scancel 21"]


def test_a_job_that_cannot_be_noted_is_taken_off_the_queue_again(
    small: list[str], slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: Run, job_id: str | None) -> None:
        raise UserError("No space left on device")

    monkeypatch.setattr(launcher, "finish_submission", full)
    with pytest.raises(UserError, match="No space left"):
        submitted(small)
    assert slurm.submissions, "the control: it was submitted"
    assert slurm.queue == []
    assert not list((tmp_path / "runs").glob("2*"))


def test_a_job_that_was_named_rightly_stays(small: list[str], slurm: FakeSlurm) -> None:
    (run,) = submitted(small)
    assert slurm.queue == [run.id]
    assert slurm.calls("scancel") == []
