"""A run has one job, and knows it: whoever submits beside whom, and whenever a command is killed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runyard.cli.main import main
from runyard.cluster.launch import submit as launcher
from runyard.cluster.launch.checks import preflight
from runyard.cluster.monitor.run_status import run_status
from runyard.cluster.slurm import submission
from runyard.config.compose import compose
from runyard.file_lock import exclusive_lock
from runyard.runs.journal import Journal
from runyard.runs.run import Run
from runyard.runs.summary import RunSummary
from tests.support.fake_slurm import NUMBER, SBATCH, FakeSlurm

AT_ONCE = 4
ENDS_S = 600  # a guard against hanging alone
fork = multiprocessing.get_context("fork")  # what is imported here need not be imported in each


@pytest.fixture
def run(small: list[str]) -> Run:
    """One that stopped."""
    overrides = ["experiment=null", *small, "cluster=slurm"]
    run = Run.create(compose(overrides).config, [o for o in overrides if not o.startswith("runs_dir=")])
    Journal(run.journal_path).write("stop", reason="interrupted", message="", cause="TERM")
    return run


def command(said: Path, *argv: str) -> None:
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    code = main(list(argv))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def at_once(folder: Path, *commands: tuple[str, ...]) -> list[tuple[int | None, str]]:
    """What commands that are started together end with and say."""
    files = [folder / f"said-{k}" for k in range(len(commands))]
    going = [fork.Process(target=command, args=(f, *argv)) for f, argv in zip(files, commands, strict=True)]
    for process in going:
        process.start()
    for process in going:
        process.join(ENDS_S)
    return [(p.exitcode, f.read_text()) for p, f in zip(going, files, strict=True)]


def resumes(run: Run, tmp_path: Path) -> list[tuple[int | None, str]]:
    return at_once(tmp_path, *[("resume", str(run.path))] * AT_ONCE)


def test_of_several_who_resume_a_run_at_once_one_does_and_the_others_are_told_of_its_job(
    run: Run, slurm: FakeSlurm, tmp_path: Path
) -> None:
    ended = resumes(run, tmp_path)
    assert sorted(code or 0 for code, _ in ended) == [0, *[2] * (AT_ONCE - 1)], ended
    for code, said in ended:
        line = said.splitlines()[-1]
        assert code == 0 or f"is waiting already (job {NUMBER}); see: runyard status" in line, said
    assert slurm.queue == [run.id]
    assert [job["id"] for job in Run.open(run.path).record["jobs"]] == [NUMBER]
    assert main(["cancel", "--wait-s", "0", str(run.path)]) in (0, 1)
    assert slurm.queue == []


@contextlib.contextmanager
def no_lock(run: Path, reference: str) -> Iterator[int | None]:
    yield None


MEETS = 'until [ "$(grep -c "^sbatch /" "$here/calls")" -ge 2 ]; do /bin/sleep 0.05; done; '


def test_without_the_lock_several_jobs_are_submitted(
    run: Run, slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control. The first sbatch waits for another."""
    monkeypatch.setattr(launcher, "submission_lock", no_lock)
    monkeypatch.setattr(launcher, "require_first_job", lambda *_: None)
    slurm.program("sbatch", SBATCH.replace("number=", MEETS + "number="))
    resumes(run, tmp_path)
    assert len(slurm.submissions) > 1


def test_where_the_disk_has_no_locks_the_job_that_was_first_on_the_queue_stays(
    run: Run, slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "submission_lock", no_lock)
    first = run.path / "slurm" / "submission_0.sh"
    another = f'echo "9|other||{first}" >> "$here/queue"\n'
    slurm.program("sbatch", SBATCH.replace("number=", f"{another}number="))
    ((code, said),) = at_once(tmp_path, ("resume", str(run.path)))
    assert (code, said) == (2, f"runyard: run {run.id} already has job 9, from another command; "
                               f"see: runyard status {run.cli_reference}\n")  # fmt: skip
    assert slurm.queue == ["other"]
    assert Run.open(run.path).record["jobs"] == []


KILLED = {  # what sbatch does, and whether the job comes on the queue
    "before sbatch was heard": ("kill -KILL $PPID; exit 1\n", False),
    "after it was heard": (SBATCH.replace("exit ;; esac", "exit ;; esac; trap 'kill -KILL $PPID' EXIT", 1), True),
    "while it is on its way": ("case $1 in --*) exit ;; esac; kill -KILL $PPID; /bin/sleep 1\n" + SBATCH, True),
}


@pytest.mark.parametrize(("sbatch", "queued"), KILLED.values(), ids=KILLED)
def test_a_command_that_is_killed_leaves_a_job_that_is_found_or_none(
    run: Run, slurm: FakeSlurm, tmp_path: Path, sbatch: str, queued: bool
) -> None:
    slurm.program("sbatch", "case $1 in --*) exit ;; esac\n" + sbatch)
    ((code, _),) = at_once(tmp_path, ("resume", str(run.path)))
    assert code == -9
    assert Run.open(run.path).record["submission"]["launcher"] == "slurm", "it was written down before"
    slurm.program("sbatch", SBATCH)
    ((code, said),) = at_once(tmp_path, ("resume", str(run.path)))
    assert (code == 2 and f"(job {NUMBER})" in said) if queued else code == 0, said
    record = Run.open(run.path).record
    assert [job["id"] for job in record["jobs"]] == [NUMBER]
    assert "submission" not in record
    assert slurm.queue == [run.id]
    assert main(["cancel", "--wait-s", "0", str(run.path)]) in (0, 1)
    assert slurm.queue == []


def test_a_job_that_only_the_journal_knows_of_is_that_of_a_submission_that_was_cut_off(
    run: Run, slurm: FakeSlurm
) -> None:
    submission.record_submission(run, "ab12", launcher.job_record(run, run.path / "slurm"))
    Journal(run.journal_path).write("start", job_id="40", launcher="SLURM", nodes=1)
    run_status(RunSummary(run.path))
    (job,) = Run.open(run.path).record["jobs"]
    assert (job["id"], job["token"], job["logs"]) == ("40", "ab12", "slurm")


def test_a_submission_that_is_under_way_is_left_alone(run: Run, slurm: FakeSlurm) -> None:
    submission.record_submission(run, "ab12", launcher.job_record(run, run.path / "slurm"))
    with exclusive_lock(run.path / submission.LOCK):
        run_status(RunSummary(run.path))
        assert "submission" in Run.open(run.path).record
    run_status(RunSummary(run.path))
    assert "submission" not in Run.open(run.path).record, "the control"


def test_while_slurm_does_not_answer_nothing_is_submitted(
    run: Run, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "RETRY_TIMEOUT_S", 0.0)
    run.add_job({"id": "7", "launcher": "slurm", "submitted": 0.0})
    Journal(run.journal_path).write("start", job_id="7", launcher="SLURM", nodes=1)
    slurm.says("down")
    assert main(["resume", str(run.path)]) == 2
    assert "nothing was submitted, since it may have a job already" in capsys.readouterr().err
    assert slurm.submissions == []


@pytest.mark.parametrize("how", ["copied", "written by another"])
def test_a_foreign_record_ends_nobodys_job(
    run: Run, slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    launcher.resume(run, [])
    foreign = tmp_path / "elsewhere" / run.id
    shutil.copytree(run.path, foreign, symlinks=True)
    if how == "written by another":
        record = json.loads((foreign / "run.json").read_text())
        record["jobs"] = [{"id": NUMBER, "launcher": "slurm", "name": run.id, "submitted": 0.0}]
        (foreign / "run.json").write_text(json.dumps(record))
    assert main(["cancel", str(foreign)]) == 2
    assert run.id in capsys.readouterr().err
    assert slurm.queue == [run.id]
    assert slurm.calls("scancel") == []
    main(["cancel", "--wait-s", "0", str(run.path)])
    assert slurm.queue == [], "the control"


def test_two_commands_that_write_a_record_lose_nothing_of_each_others(run: Run) -> None:
    first, second = Run.open(run.path), Run.open(run.path)
    first.add_job({"id": "1", "launcher": "slurm"})
    second.add_job({"id": "2", "launcher": "slurm"})
    first.mark_pruned()
    second.change_settings(second.config, second.record["overrides"], changes=["workers=3"])
    record = Run.open(run.path).record
    assert [job["id"] for job in record["jobs"]] == ["1", "2"]
    assert (record["pruned"], len(record["amended"])) == (True, 1)


def test_a_run_of_this_machine_that_another_command_starts_is_refused_in_one_line(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submission, "LOCK_TIMEOUT_S", 0.0)
    run = Run.create(compose(["experiment=null", *small]).config, [])
    with exclusive_lock(run.path / submission.LOCK):
        assert main(["resume", str(run.path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"runyard: another command has been submitting run {run.path} for 0 s")


def test_where_a_disk_has_no_locks_a_block_is_entered_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    with exclusive_lock(tmp_path / "lock") as held:
        assert held is not None
    monkeypatch.setattr("fcntl.flock", none)
    with exclusive_lock(tmp_path / "lock") as held:
        assert held is None
