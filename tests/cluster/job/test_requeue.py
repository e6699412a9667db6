"""The end of a batch script: what is decided is written down, then done."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runyard.cluster.job.requeue import decide_requeue, finish_job
from runyard.config.schema import Config
from runyard.errors import ExitCode
from runyard.runs import journal
from runyard.runs.events import Row
from runyard.runs.journal import Journal
from runyard.runs.run import Run
from tests.support.fake_slurm import FakeSlurm
from tests.support.settings import ROOT


@pytest.fixture
def run(tmp_path: Path, make_config: Callable[..., Config]) -> Run:
    return Run.create(make_config("experiment=starter", "cluster=slurm", f"runs_dir={tmp_path / 'runs'}"), [])


@pytest.fixture
def job(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """We are in job 12's batch script, after srun."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("RUNYARD_BEGAN", "0")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody there: what W&B is told has tests of its own
    slurm.says("shown", "JobId=12 JobName=x\n   PreemptEligibleTime=2030-01-01T00:00:00 PreemptTime=None\n")
    return slurm


SCRIPT = ROOT / "slurm" / "requeue.sh"


def end(run: Run, ended: int, python: Path | str = sys.executable) -> subprocess.CompletedProcess[str]:
    """The end of a batch script whose srun ended with ``ended``."""
    return subprocess.run([SCRIPT, python, run.path, str(ended)], capture_output=True, text=True)


def told(run: Run) -> list[Row]:
    return [{k: v for k, v in row.items() if k != "t"} for row in journal.read_journal(run.journal_path)[0]]


def checkpoint(run: Run, step: int) -> None:
    (run.checkpoints / f"step_{step:08d}").mkdir()
    (run.checkpoints / f"step_{step:08d}" / "manifest.json").touch()


def test_it_is_written_down_before_the_job_goes_back_into_the_queue(run: Run, job: FakeSlurm) -> None:
    checkpoint(run, 8)
    checkpoint(run, 24)
    (run.checkpoints / ".making-step_00000099").mkdir()
    (run.checkpoints / "step_00000099").mkdir()  # no manifest: not one
    job.program("scontrol", f'[ "$1" = show ] || cp {run.journal_path} "$here/journal then"\n')
    done = end(run, 1)
    assert done.returncode == ExitCode.REQUEUE
    row = {"event": "requeue", "cause": "crash", "step": 24, "without_progress": 1,
           "failure": {"step": 24, "before_first_step": True}}  # fmt: skip
    assert told(run) == [row]
    assert '"requeue"' in (job.folder / "journal then").read_text()
    assert job.calls("scontrol")[-1] == "scontrol requeue 12"
    assert done.stdout == "runyard: crash: back into the queue, to go on at step 24\n"


def test_of_an_array_only_the_element_is_requeued(run: Run, job: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    end(run, 1)
    assert job.calls("scontrol") == ["scontrol show job 11_3", "scontrol requeue 11_3"]


def test_a_preemption_is_told_by_slurm(run: Run, job: FakeSlurm) -> None:
    book = Journal(run.journal_path)
    book.write("start")
    book.write("stop", reason="interrupted", message="", cause="TERM")
    assert end(run, 0).returncode == 130
    assert [row["event"] for row in told(run)] == ["start", "stop"], "the control: without one, TERM is a wish to end"
    job.says("shown", "JobId=12 PreemptTime=2030-01-01T00:00:00 LastSchedEval=x\n")
    assert end(run, 0).returncode == ExitCode.REQUEUE
    assert told(run)[-1]["cause"] == "preemption"
    assert job.calls("scontrol")[-1] == "scontrol requeue 12"


COMPLETING = "JobId=12\n   JobState=COMPLETING Reason={} Dependency=(null)\n   Requeue=1 Restarts={} BatchFlag=1\n"


def test_what_slurm_itself_ends_is_left_to_it_but_for_the_time_limit(
    run: Run, job: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    for reason, restarts, kind in (("None", 2, "scancel"), ("None", 3, "scontrol requeue")):
        job.says("shown", COMPLETING.format(reason, restarts))
        assert end(run, 143).returncode == 143, kind
        assert told(run) == [], kind
    assert [call for call in job.calls() if "show" not in call] == []
    job.says("shown", COMPLETING.format("TimeLimit", 2))
    assert end(run, 143).returncode == ExitCode.REQUEUE
    assert told(run) == [{"event": "requeue", "cause": "time limit", "step": 0, "without_progress": 1}]
    assert job.calls()[-1] == "scontrol requeue 12"


def test_a_cancelled_job_is_told_to_its_people_and_one_that_slurm_requeues_is_not(
    job: FakeSlurm, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    heard = f"notify.command='echo $RUN_STATE >> {tmp_path / 'heard'}'"
    run = Run.create(make_config("experiment=starter", "cluster=slurm", f"runs_dir={tmp_path / 'runs'}", heard), [])
    job.says("shown", COMPLETING.format("None", 3))
    assert end(run, 143).returncode == 143
    assert not (tmp_path / "heard").exists(), "the control: SLURM itself has requeued it"
    job.says("shown", COMPLETING.format("None", 2))
    assert [end(run, 143).returncode for _ in range(2)] == [143, 143]
    assert (tmp_path / "heard").read_text() == "cancelled\n"
    assert [row["event"] for row in told(run)] == ["notified"]


def test_a_job_whose_time_has_come_is_judged_so_before_slurm_sees_it(
    run: Run, job: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.says("shown", "JobId=12\n   JobState=RUNNING Reason=None\n")
    for left_s, cause in ((3, "time limit"), (60, "crash")):
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + left_s))
        assert end(run, 1).returncode == ExitCode.REQUEUE
        assert told(run)[-1]["cause"] == cause


@pytest.mark.parametrize(("shown_in_s", "began_with_in_s", "cause"), [(3600, 3, "crash"), (4, 3600, "time limit")])
def test_a_limit_that_was_raised_or_lowered_since_the_start_is_the_one_that_counts(
    run: Run, job: FakeSlurm, monkeypatch: pytest.MonkeyPatch, shown_in_s: int, began_with_in_s: int, cause: str
) -> None:
    now = time.time()
    end_time = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now + shown_in_s))
    job.says("shown", f"JobId=12\n   JobState=RUNNING Reason=None\n   StartTime=x EndTime={end_time} Deadline=N/A\n")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(now) + began_with_in_s))
    assert end(run, 1).returncode == ExitCode.REQUEUE
    assert told(run)[-1]["cause"] == cause


AWAY = "36"  # calls, which at five seconds each are well over two minutes


def test_a_rank_that_dies_while_the_controller_is_away_is_requeued_when_it_is_back(run: Run, job: FakeSlurm) -> None:
    job.program("sleep", "exec /bin/sleep 0.02\n")
    job.says("down", AWAY)
    assert end(run, 1).returncode == ExitCode.REQUEUE
    assert [row["event"] for row in told(run)] == ["requeue"]
    assert job.calls("scontrol")[-1] == "scontrol requeue 12"


def test_a_controller_that_goes_away_between_the_question_and_the_requeue_is_waited_for(
    run: Run, job: FakeSlurm
) -> None:
    job.program("sleep", "exec /bin/sleep 0.02\n")
    goes = job.program("goes", f'echo {AWAY} > "$here/down"; exec {sys.executable} "$@"\n')
    assert end(run, 1, goes).returncode == ExitCode.REQUEUE
    assert not (job.folder / "down").exists()


def test_asked_once_as_before_the_run_would_have_ended_there(run: Run, job: FakeSlurm, tmp_path: Path) -> None:
    """The control."""
    scripts = tmp_path / "slurm"
    scripts.mkdir()
    (scripts / "requeue.sh").write_text(SCRIPT.read_text())
    asks = SCRIPT.with_name("ask.sh").read_text()
    assert "is_refused() {\n" in asks
    (scripts / "ask.sh").write_text(asks.replace("is_refused() {\n", "is_refused() {\n return 0\n"))
    job.says("down", AWAY)
    done = subprocess.run(["bash", scripts / "requeue.sh", sys.executable, run.path, "1"], capture_output=True)
    assert done.returncode == 1
    assert "could not be requeued" in told(run)[-1]["message"]


def test_the_decision_outlives_the_term_of_the_time_limit(run: Run, job: FakeSlurm) -> None:
    slow = job.program("slow", f'kill -TERM $PPID; kill -TERM $$; exec {sys.executable} "$@"\n')
    assert end(run, 1, slow).returncode == ExitCode.REQUEUE
    assert job.calls("scontrol")[-1] == "scontrol requeue 12"


def test_a_run_that_is_not_to_be_requeued_is_only_judged(
    tmp_path: Path, job: FakeSlurm, make_config: Callable[..., Config]
) -> None:
    config = make_config("cluster=slurm", "cluster.requeue=false", f"runs_dir={tmp_path / 'runs'}")
    run = Run.create(config, [])
    assert end(run, 1).returncode == 1
    assert told(run) == []
    assert job.calls("scontrol") == ["scontrol show job 12"]


def test_a_run_that_gets_no_further_is_given_up_in_words(run: Run, job: FakeSlurm) -> None:
    *_, fourth = ends = [end(run, 9) for _ in range(4)]
    assert [done.returncode for done in ends] == [ExitCode.REQUEUE, ExitCode.REQUEUE, ExitCode.REQUEUE, 1]
    *rows, last = told(run)
    assert [row["without_progress"] for row in rows] == [1, 2, 3]
    assert last == {
        "event": "stop", "reason": "failed", "user_error": False, "retry": False, "given_up": True, "step": 0,
        "message": "given up: 3 restarts without progress at step 0; the last ended with: "
                   "srun ended with 9 and the tasks said nothing",
    }  # fmt: skip
    assert fourth.stderr == f"runyard: {last['message']}\n"
    assert len([call for call in job.calls() if "requeue" in call]) == 3


def test_a_run_that_always_crashes_is_started_four_times(run: Run) -> None:
    ends = 0
    while (verdict := decide_requeue(journal.read_events(run.journal_path), 1, 0, preempted=False)).requeue_cause:
        Journal(run.journal_path).write("requeue", cause=verdict.requeue_cause, step=0)
        ends += 1
        assert ends < 10
    assert (ends, verdict.without_progress) == (3, 3)


def test_an_evaluation_longer_than_the_time_limit_gets_further_at_the_same_step(run: Run) -> None:
    checkpoint(run, 8)
    manifest = run.checkpoints / "step_00000008" / "manifest.json"

    def ended(evaluated: int) -> int:
        manifest.write_text(json.dumps({"evaluated": evaluated}))
        Journal(run.journal_path).write("stop", reason="interrupted", cause="USR2", message="")
        return finish_job(str(run.path), 130, preempted=False)

    assert {ended(evaluated) for evaluated in range(100, 700, 100)} == {ExitCode.REQUEUE}
    assert [ended(600) for _ in range(3)] == [ExitCode.REQUEUE, ExitCode.REQUEUE, 1], (
        "the control: it is still where it was"
    )


@pytest.mark.parametrize("why", ["slurm_requeue error: Access/permission denied", ""])
def test_a_requeue_that_fails_is_told_with_what_mends_it(run: Run, job: FakeSlurm, why: str) -> None:
    job.says("broken", why)
    done = end(run, 1)
    assert done.returncode == 1
    mend = f"this job could not be requeued ({why or 'no reason given'}); continue with: runyard resume {run.path}"
    assert told(run)[-1] == {"event": "warning", "message": mend}
    assert done.stderr == f"runyard: {mend}\n"


def test_a_run_whose_record_is_damaged_is_not_requeued_and_says_so_in_one_line(run: Run, job: FakeSlurm) -> None:
    (run.path / "run.json").write_text("{")
    done = end(run, 1)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"runyard: .*run\.json: damaged .*\n", done.stderr)
    assert job.calls("scontrol") == ["scontrol show job 12"]


def test_a_full_disk_does_not_keep_a_job_from_being_requeued(
    run: Run, job: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Journal, "write", full)
    assert finish_job(str(run.path), 1, preempted=False) == ExitCode.REQUEUE
    said = f"runyard: {run.journal_path}: No space left on device: requeue not written down\n"
    assert capsys.readouterr().err == said


def test_a_container_without_slurms_commands_is_enough_for_the_decision(run: Run, job: FakeSlurm) -> None:
    job.says("shown", "JobId=12 PreemptTime=2030-01-01T00:00:00 LastSchedEval=x\n")
    contained = job.program("contained", f'PATH=/nowhere exec {sys.executable} "$@"\n')
    assert end(run, 1, contained).returncode == ExitCode.REQUEUE
    assert told(run)[-1]["cause"] == "preemption"
    assert job.calls("scontrol")[-1] == "scontrol requeue 12"


def test_a_job_whose_run_another_writes_leaves_the_journal_alone(
    run: Run, job: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    lease = run.acquire_lease()
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    done = end(run, 137)
    assert done.returncode == 137
    assert told(run) == []
    assert job.calls("scontrol") == ["scontrol show job 12"]
    assert f"process {os.getpid()}" in done.stderr
    lease.release()
    assert end(run, 137).returncode == ExitCode.REQUEUE, "the control"
    assert told(run)[0]["event"] == "requeue"
