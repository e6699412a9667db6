"""Small runs that share a job: each has its own end, and the job is requeued for those that are to go on."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from runyard.cli.main import main
from runyard.cluster.job import pack_job, task_ends
from runyard.cluster.job.pack_job import PackJob
from runyard.cluster.job.train_job import TrainJob
from runyard.cluster.launch.job_environment import journal_command
from runyard.cluster.monitor.run_status import run_status
from runyard.cluster.slurm import pack
from runyard.cluster.slurm.queue import RUN_SEPARATOR
from runyard.errors import ExitCode
from runyard.runs import journal
from runyard.runs.journal import Journal
from runyard.runs.run import Run
from runyard.runs.summary import RunSummary
from tests.support.fake_slurm import NUMBER, FakeSlurm

PACK = ["cluster=slurm", "cluster.runs_per_task=3", f"cluster.python={sys.executable}", "tracking=offline"]
FIRST = f"{NUMBER}_0"


@pytest.fixture
def runs(small: list[str], slurm: FakeSlurm, tmp_path: Path) -> list[Run]:
    """Four on the queue, in jobs of three and one."""
    assert main(["submit", "-m", "experiment=null", *small, *PACK, "seed=range(4)"]) == 0
    found = [Run.open(path) for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")]
    return sorted(found, key=lambda run: run.config.seed)


def test_a_grid_takes_one_job_for_so_many_runs_and_a_run_that_is_cancelled_leaves_it(
    runs: list[Run], slurm: FakeSlurm
) -> None:
    assert len(slurm.submissions) == 1
    script = (slurm.folder / "script").read_text()
    assert all(f"#SBATCH --{directive}\n" in script for directive in ("array=0-1%2", "ntasks-per-node=3"))
    jobs = [(job["id"], job["task"]) for run in runs for job in RunSummary(run.path).record["jobs"]]
    assert jobs == [(FIRST, 0), (FIRST, 1), (FIRST, 2), (f"{NUMBER}_1", 0)]
    assert main(["cancel", str(runs[0].path)]) == 0
    assert slurm.calls("scancel") == []
    states = [str(run_status(RunSummary(run.path)).state) for run in runs]
    assert states == ["interrupted", "waiting", "waiting", "waiting"]
    assert main(["resume", str(runs[0].path)]) == 0
    status = run_status(RunSummary(runs[0].path))
    assert getattr(status.job, "id", None) == "4712", "a job of its own"
    assert main(["cancel", str(runs[1].path)]) == main(["cancel", str(runs[2].path)]) == 0
    assert slurm.calls("scancel") == [f"scancel {FIRST}"], "once nobody is left in it"


def end(slurm: FakeSlurm, runs: list[Run], srun_says: str = "", shown: str = "") -> tuple[int, list[str], Path]:
    """The first job from its start to its end: its exit code, what it asked of SLURM, and its log."""
    log = Path(runs[0].path, Run.open(runs[0].path).record["jobs"][0]["logs"], f"{FIRST}_job.err").resolve()
    script = slurm.folder / "script"
    script.write_text(script.read_text().replace("#!/bin/bash\n", f"#!/bin/bash\nexec 2>>{log}\n", 1))
    slurm.says("srun says", srun_says)
    slurm.says("shown", shown)
    done = slurm.run_script(srun_ends_with=1 if srun_says else 0, SLURM_ARRAY_JOB_ID=NUMBER, SLURM_ARRAY_TASK_ID="0",
                            SLURM_ARRAY_TASK_MAX="1")  # fmt: skip
    return done.returncode, [call for call in slurm.calls("scontrol") if "requeue" in call], log


def told(run: Run) -> list[str]:
    return [row.get("cause") or row["event"] for row in journal.read_journal(run.journal_path)[0]]


def test_a_job_is_requeued_for_those_of_its_runs_that_are_to_go_on(runs: list[Run], slurm: FakeSlurm) -> None:
    finished, mistaken, stopped, _ = runs
    slurm.program("srun", f"""
for run in {finished.path} {stopped.path}; do
    [ $run = {finished.path} ] && how='"reason": "finished"' || how='"reason": "interrupted", "cause": "USR2"'
    echo '{{"event": "start", "t": '$(date +%s.%N)', "step": 0}}' >> $run/metrics.jsonl
    echo '{{"event": "stop", "t": '$(date +%s.%N)', '"$how"'}}' >> $run/metrics.jsonl
done
cat "$here/srun says" >&2; exit 2
""")  # fmt: skip
    code, asked, log = end(slurm, runs, "srun: error: n1: task 1: Exited with exit code 2\n")
    assert (code, asked) == (ExitCode.REQUEUE, [f"scontrol requeue {FIRST}"]), log.read_text()
    assert [told(run) for run in (finished, mistaken, stopped)] == [
        ["start", "stop"],
        [],
        ["start", "USR2", "time limit"],
    ]
    said = task_ends.log_of_task(log, 2).with_suffix(".out").read_text()
    assert said == "runyard: time limit: back into the queue, to go on at step 0\n"


@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "the control: not cancelled"])
def test_a_run_that_was_cancelled_before_its_job_was_preempted_does_not_go_on(
    cancelled: bool, runs: list[Run], slurm: FakeSlurm
) -> None:
    one, *others = runs[:3]
    for run in others:
        Journal(run.journal_path).write("stop", reason="finished")
    stop = 'printf \'{"event": "stop", "t": %s, "reason": "interrupted", "cause": "TERM"}\\n\' $(date +%s.%N)'
    slurm.program("srun", f"{stop} >> {one.path}/metrics.jsonl\n")
    if cancelled:
        pack.cancel_file(one.path, FIRST).touch()
    code, asked, log = end(slurm, runs, shown="   JobId=1 PreemptTime=2026-01-01T00:00:00 EndTime=2026-01-01T00:00:00")
    assert bool(asked) != cancelled, log.read_text()
    assert code == (ExitCode.INTERRUPTED if cancelled else ExitCode.REQUEUE)


def test_each_run_of_a_job_takes_itself_for_alone_with_a_gpu_and_its_part_of_the_cpus(
    runs: list[Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(
        TrainJob, "__call__", lambda self: seen.append({"run": self.run_dir, **os.environ}) or "finished"
    )
    monkeypatch.setattr(pack_job.os, "sched_getaffinity", lambda pid: range(os.cpu_count() or 1))
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "CUDA_VISIBLE_DEVICES", "SLURM_CPUS_PER_TASK")
    job = PackJob([str(run.path) for run in runs[:3]])
    environment = {"SLURM_ARRAY_JOB_ID": NUMBER, "SLURM_ARRAY_TASK_ID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "9",
                   "CUDA_VISIBLE_DEVICES": "4,6"}  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for task in range(4):
        monkeypatch.setenv("SLURM_PROCID", str(task))
        assert job() == ("finished" if task < 3 else "left")
        assert os.environ["SLURM_PROCID"] == str(task), "submitit names its files by it"
    cpus = str(max(1, (os.cpu_count() or 1) // 3))
    assert [tuple(env[name] for name in names) for env in seen] == [
        ("0", "1", "0", gpu, cpus) for gpu in ("4", "6", "4")
    ]
    assert [env["run"] for env in seen] == job.run_dirs
    Journal(runs[0].journal_path).write("stop", reason="failed", retry=False, message="it")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert (job(), len(seen)) == ("left", 3)
    assert capsys.readouterr().out.endswith(
        f"runyard: this run is over, or has another job: job {FIRST} leaves it out\n"
    )


@pytest.mark.parametrize(
    "command", [["submit"], ["sweep", "loss.label_smoothing=log(1e-3,1e-1)", "--trials", "2"]], ids=lambda c: c[0]
)
def test_it_is_for_a_grid(
    command: list[str], small: list[str], slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command[0], "experiment=null", *small, *PACK, *command[1:]]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "runyard: cluster.runs_per_task=3: is for a grid; submit several runs with -m, or leave it out"
    assert slurm.submissions == []


def test_a_dry_run_says_how_many_jobs_there_are_and_what_they_cost(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["cluster.gpus_per_node=2", "cluster.timeout_min=60", "cluster.array_parallelism=4"]
    assert main(["submit", "--dry-run", "-m", "experiment=null", *small, *PACK, *size, "seed=range(7)"]) == 0
    said = capsys.readouterr().out
    assert "7 runs in 3 jobs, at most 4 jobs at once, each on 1 node, 3 tasks and 2 GPUs on each" in said
    assert "at most 60 min and 6 GPU-hours" in said


def test_a_task_ends_as_srun_says_of_it_and_not_as_the_worst_of_its_job(tmp_path: Path) -> None:
    log = tmp_path / "1_job.err"
    log.write_text("srun: error: n1: tasks 0,2-3: Exited with exit code 2\nsrun: error: n1: task 4: Killed\n")
    assert [task_ends.exit_code_of(task, log, 0, 9) for task in range(5)] == [2, 0, 2, 2, 1]
    assert task_ends.first_task_exit(log, 0, 1) == {}
    assert task_ends.first_task_exit(log, 0, 4)["message"] == "killed by SIGKILL (signal 9)"
    log.write_text("srun: error: Unable to create step\n")
    assert task_ends.exit_code_of(0, log, 0, 9) == 9, "srun itself failed, and no task began"


def test_an_env_setup_that_fails_is_told_to_all_runs_of_the_job_but_one_that_has_finished(tmp_path: Path) -> None:
    finished, _ = runs = [tmp_path / "finished", tmp_path / "not yet"]
    for run in runs:
        run.mkdir()
    Journal(finished / "metrics.jsonl").write("stop", reason="finished")
    word = shlex.quote(RUN_SEPARATOR.join(map(str, runs)))
    subprocess.run(["bash", "-c", f"setup_message=it; {journal_command(word)}"], check=True)
    ends = [[row["reason"] for row in journal.read_journal(run / "metrics.jsonl")[0]] for run in runs]
    assert ends == [["finished"], ["failed"]]
