"""A chain: where nothing may be requeued, jobs of one run, each of which goes on where the one before stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runyard.cli.commands.submit import dependency_job_id
from runyard.cli.main import main
from runyard.cluster.monitor.run_status import query_slurm, run_status
from runyard.cluster.slurm.submission import resolve_pending
from runyard.errors import ExitCode
from runyard.runs import journal
from runyard.runs.journal import Journal
from runyard.runs.run import Run
from runyard.runs.summary import RunSummary
from tests.support.fake_slurm import NUMBER, FakeSlurm

CHAIN = ["cluster=slurm", "cluster.requeue=false", "cluster.chain=3", f"cluster.python={sys.executable}"]
JOBS = [f"{NUMBER}_{k}" for k in range(3)]


@pytest.fixture
def run(small: list[str], slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """One whose chain is on the queue."""
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody there: what W&B is told has tests of its own
    return submitted(small, tmp_path)


def submitted(small: list[str], tmp_path: Path, *settings: str) -> Run:
    assert main(["submit", "experiment=null", *small, *CHAIN, *settings]) == 0
    (path,) = (path for path in (tmp_path / "runs").iterdir() if not path.name.startswith("."))
    return Run.open(path)


def start(slurm: FakeSlurm, k: int, srun_ends_with: int = 0) -> subprocess.CompletedProcess[str]:
    """The k-th job of the chain from its start to its end."""
    (slurm.folder / "calls").unlink()
    return slurm.run_script(srun_ends_with=srun_ends_with, SLURM_ARRAY_JOB_ID=NUMBER, SLURM_ARRAY_TASK_ID=str(k),
                            SLURM_ARRAY_TASK_MAX="2")  # fmt: skip


def told(run: Run) -> list[str]:
    return [row.get("cause") or row["event"] for row in journal.read_journal(run.journal_path)[0]]


def test_one_submission_puts_the_whole_chain_on_the_queue_and_the_run_knows_all_of_its_jobs(
    run: Run, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(slurm.submissions) == 1
    script = (slurm.folder / "script").read_text()
    for directive in ("array=0-2%1", "dependency=singleton", "no-requeue", f"job-name={run.id}"):
        assert f"#SBATCH --{directive}\n" in script
    record = Run.open(run.path).record
    assert [job["id"] for job in record["jobs"]] == JOBS
    assert len({job["token"] for job in record["jobs"]}) == 1
    status = run_status(RunSummary(run.path))
    assert getattr(status.job, "id", None) == JOBS[0], "the one that comes next"
    assert status.message.endswith("; 2 more jobs of its chain wait")
    capsys.readouterr()
    assert main(["resume", str(run.path)]) == 2
    assert f"is waiting already (job {JOBS[0]}); see: runyard status" in capsys.readouterr().err
    assert main(["cancel", str(run.path)]) == 0
    assert slurm.queue == []
    assert set(slurm.calls("scancel")) == {f"scancel {job}" for job in JOBS}
    assert main(["resume", str(run.path)]) == 0
    assert [job["id"] for job in Run.open(run.path).record["jobs"]] == [*JOBS, *(f"4712_{k}" for k in range(3))]


def test_a_chain_whose_command_was_cut_off_is_found_with_all_of_its_jobs(run: Run) -> None:
    with run.editing_record() as record:
        first, *_ = record["jobs"]
        record["submission"] = {**{k: v for k, v in first.items() if k != "id"}, "chain": 3}  # type: ignore[typeddict-item]
        record["jobs"] = []
    summary = RunSummary(run.path)
    answer, _ = query_slurm([summary])
    resolve_pending(run.path, answer, summary.starts)
    record = Run.open(run.path).record
    assert ([job["id"] for job in record["jobs"]], "submission" in record) == (JOBS, False)
    assert all("chain" not in job for job in record["jobs"])


def test_after_a_chain_means_after_all_of_its_jobs(run: Run, small: list[str], slurm: FakeSlurm) -> None:
    slurm.says("known", f"{NUMBER}_0|RUNNING|None|0:00|10:00|N/A||x\037/\037x\n")
    assert main(["submit", "experiment=null", *small, "cluster=slurm", "--after", str(run.path)]) == 0
    assert f"#SBATCH --dependency=afterok:{NUMBER}\n" in (slurm.folder / "script").read_text()
    Journal(run.journal_path).write("start", step=0, job_id=JOBS[1])
    Journal(run.journal_path).write("stop", reason="finished")
    assert dependency_job_id(str(run.path), lambda: "") == JOBS[1], "what was left of it is cancelled"


@pytest.mark.parametrize(
    "command", [["submit", "-m", "seed=0,1"], ["sweep", "loss.label_smoothing=log(1e-3,1e-1)", "--trials", "2"]]
)
def test_a_chain_is_of_a_single_run(
    command: list[str], small: list[str], slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([command[0], "experiment=null", *small, *CHAIN, *command[1:]]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "runyard: cluster.chain=3: is for a single run; submit the runs one by one"
    )
    assert slurm.submissions == []


def test_a_job_that_stops_hands_on_to_the_next_and_the_last_ends_as_without_a_chain(run: Run, slurm: FakeSlurm) -> None:
    for k in (0, 1):
        done = start(slurm, k, srun_ends_with=1)
        assert (done.returncode, done.stdout) == (
            0, "runyard: crash: the next job of the chain is to go on at step 0\n"), done.stderr  # fmt: skip
        assert len(slurm.calls("srun")) == 1
        assert [call for call in slurm.calls("scontrol") if "requeue" in call] == []
    assert told(run) == ["crash"] * 2
    assert start(slurm, 2, srun_ends_with=1).returncode == ExitCode.FAILED, "the control: nothing follows"
    assert told(run) == ["crash"] * 2


def test_a_job_that_was_submitted_within_a_chain_is_not_of_it(run: Run, slurm: FakeSlurm) -> None:
    script = slurm.folder / "script"
    script.write_text(script.read_text().replace('RUNYARD_CHAIN="$SLURM_ARRAY_JOB_ID"', "RUNYARD_CHAIN=1"))
    assert start(slurm, 0, srun_ends_with=1).returncode == ExitCode.FAILED


def test_a_chain_without_progress_is_given_up_and_what_is_left_of_it_ends_at_once(
    small: list[str], slurm: FakeSlurm, tmp_path: Path
) -> None:
    slurm.says("dependencies", f"afterok:{NUMBER}_*(unfulfilled)\n")  # else it is cancelled
    run = submitted(small, tmp_path, "cluster.chain=6")
    results = []
    for k in range(6):
        (slurm.folder / "calls").unlink()
        done = slurm.run_script(srun_ends_with=1, SLURM_ARRAY_JOB_ID=NUMBER, SLURM_ARRAY_TASK_ID=str(k),
                                SLURM_ARRAY_TASK_MAX="5")  # fmt: skip
        results.append((done.returncode, len(slurm.calls("srun")), done.stdout.count("ends at once")))
    assert results == [(0, 1, 0)] * 3 + [(1, 1, 0)] + [(0, 0, 1)] * 2
    assert told(run)[:4] == ["crash"] * 3 + ["stop"]
    status = run_status(RunSummary(run.path))
    assert status.message.startswith("given up: 3 restarts without progress at step 0")
    assert "the jobs left in its chain will end at once, or end them now: runyard cancel " in status.message
    assert status.active, "so that it is neither resumed beside them nor forgotten by cancel"


# How the job before ended, and whether the next one trains.
ENDS: dict[str, tuple[dict[str, object], bool]] = {
    "finished": ({"reason": "finished"}, False),
    "cancelled by a person": ({"reason": "interrupted", "cause": "TERM"}, False),
    "given up": ({"reason": "failed", "retry": True, "given_up": True, "message": "given up: it"}, False),
    "a mistake of the user's": ({"reason": "failed", "retry": False, "user_error": True, "message": "it"}, False),
    "stopped at its limit, and its node died then": ({"reason": "interrupted", "cause": "USR2"}, True),
    "crashed, and its node died then": ({"reason": "failed", "retry": True, "message": "it"}, True),
}


@pytest.mark.parametrize(("stop", "trains"), ENDS.values(), ids=ENDS)
def test_the_next_job_trains_unless_the_run_is_over(
    run: Run, slurm: FakeSlurm, stop: dict[str, object], trains: bool
) -> None:
    Journal(run.journal_path).write("start", step=0, job_id=JOBS[0])
    Journal(run.journal_path).write("stop", **stop)
    done = start(slurm, 1)
    assert bool(slurm.calls("srun")) == trains
    if not trains:
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.startswith(f"runyard: run {run.id} ") for line in done.stdout.splitlines()] == [True]


def test_an_end_from_before_the_chain_was_submitted_does_not_end_it(run: Run, slurm: FakeSlurm) -> None:
    Journal(run.journal_path).write("stop", reason="interrupted", cause="TERM")
    with run.editing_record() as record:
        for job in record["jobs"]:
            job["submitted"] += 600
    assert slurm.calls("srun") == []
    start(slurm, 1)
    assert len(slurm.calls("srun")) == 1


def test_a_person_who_kills_one_job_of_a_chain_ends_the_run(run: Run, slurm: FakeSlurm) -> None:
    slurm.says("shown", "JobId=12\n   JobState=COMPLETING Reason=None Dependency=(null)\n   Requeue=0 Restarts=0 x=1\n")
    assert start(slurm, 0, srun_ends_with=143).returncode == 143
    assert told(run) == ["TERM"]
    assert slurm.calls("scancel") == [f"scancel --state=PENDING {NUMBER}_[1-2]"]
    slurm.says("dependencies", f"(null)\nafterok:{NUMBER}_*(unfulfilled)\n")
    start(slurm, 0, srun_ends_with=143)
    assert slurm.calls("scancel") == [], "one that is submitted after the chain would count them as failed"
    assert "was cancelled" in start(slurm, 1).stdout
    assert slurm.calls("srun") == []


def test_a_node_at_fault_is_left_out_by_the_jobs_that_wait(run: Run, slurm: FakeSlurm) -> None:
    python = slurm.program("bad python", "exit 1\n")
    script = slurm.folder / "script"
    script.write_text(script.read_text().replace(sys.executable, f"'{python}'"))
    slurm.says("shown", "JobId=12\n   JobState=RUNNING Reason=None Dependency=(null)\n   Requeue=0 Restarts=0 x=1\n")
    slurm.program("sinfo", "printf '%s|idle|x|x\\n' node1 node2\n")
    slurm.says("srun ends with", "1")
    done = subprocess.run(
        ["bash", script], capture_output=True, text=True, cwd=slurm.folder,
        env={"PATH": slurm.path, "HOME": str(slurm.folder), "SLURM_JOB_ID": "4712", "SLURM_ARRAY_JOB_ID": NUMBER,
             "SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_MAX": "2", "SLURMD_NODENAME": "node1"},
    )  # fmt: skip
    assert "the next job of the chain takes other nodes" in done.stderr
    assert done.returncode == 0
    assert slurm.calls("scontrol")[-1] == f"scontrol update JobId={NUMBER} ExcNodeList=node1"


def test_where_requeueing_is_disabled_the_refusal_names_the_chain(
    small: list[str], slurm: FakeSlurm, tmp_path: Path
) -> None:
    run = submitted(small, tmp_path, "cluster.requeue=true", "cluster.chain=1")
    slurm.says("broken", "Requested operation is presently disabled\n")
    done = slurm.run_script(srun_ends_with=1)
    assert done.stderr.splitlines()[-1] == (
        f"runyard: this job could not be requeued (Requested operation is presently disabled); continue with: runyard "
        f"resume {run.cli_reference}, with cluster.requeue=false cluster.chain=5 for five jobs, one after another"
    )
    (slurm.folder / "queue").unlink()
    assert main(["resume", str(run.path), "cluster.requeue=false", "cluster.chain=5"]) == 0
    assert len(Run.open(run.path).record["jobs"]) == 1 + 5


def test_a_dry_run_says_what_the_whole_chain_costs(
    small: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = ["experiment=null", *small, *CHAIN, "cluster.cpus_per_task=2"]
    assert main(["submit", "--dry-run", *settings]) == 0
    assert "at most 3 jobs, one after another, of 60 min and 6 core-hours\n" in capsys.readouterr().out
    assert main(["submit", "--dry-run", "--json", *settings]) == 0
    assert json.loads(capsys.readouterr().out)["node_hours"] == 3
