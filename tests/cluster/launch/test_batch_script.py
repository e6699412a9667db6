"""The batch script: exactly what sbatch is given, and what running it does.

The scripts in golden/ are what was read and found right. After a change that is meant: WRITE_GOLDEN=1 pytest this file.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runyard.cluster.launch import batch_script, dry_run
from runyard.cluster.launch import submit as launcher
from runyard.cluster.launch.batch_script import SbatchJob
from runyard.config.compose import compose
from runyard.errors import ExitCode, UserError
from runyard.runs.run import Run
from tests.support.commands import API_KEY
from tests.support.fake_slurm import NUMBER, FakeSlurm
from tests.support.settings import ROOT

IN_AN_HOUR = str(int(time.time()) + 3600)
GOLDEN = Path(__file__).parents[1] / "golden"
SCRIPTS = {
    "nyu_torch": ["cluster=nyu_torch", "cluster.account=torch_pr_1", "cluster.nodes=2", "cluster.gpus_per_node=4"],
    "nyu_greene": ["cluster=nyu_greene"],
    "slurm": ["cluster=slurm"],
    "sweep": ["cluster=slurm", "optim.lr=5e-4,1e-3", "seed=0,1,2", "cluster.array_parallelism=4"],
    "after": ["cluster=slurm"],
    "sizes": ["cluster=slurm", "cluster.cpus_per_task=6", "cluster.mem_gb=32", "cluster.gpus_per_node=2",
              "cluster.tasks_per_node=4", "cluster.timeout_min=600", "cluster.signal_delay_s=180",
              "cluster.requeue=false", "cluster.env_setup=[module purge,module load cuda/12.4]"],
    "names": ["cluster=slurm", "cluster.account=physics", "cluster.partition='gpu,long'", "cluster.qos=high",
              "cluster.constraint=a100|h100", "cluster.comment='a b; c=d'", "cluster.exclude='node[1-3,7]'",
              "cluster.nodelist=node9", "cluster.mail_user=me@example.org", "cluster.mail_type='END,FAIL'",
              "cluster.python=/opt/env/bin/python"],
    "extra": ["cluster=slurm", "cluster.extra={reservation: course, exclusive: true, mem: 0, licenses: 'a:1,b:2'}",
              "cluster.extra.wckey=lab", "cluster.extra.hint=null"],
    "chain": ["cluster=slurm", "cluster.requeue=false", "cluster.chain=5"],
    "pack": ["cluster=slurm", "seed=range(6)", "cluster.gpus_per_node=2", "cluster.runs_per_task=4",
             "cluster.env_setup=[module load cuda]"],
    "spaces": ["cluster=slurm", "runs_dir='/tmp/my runs'"],
}  # fmt: skip


def golden(said: str) -> str:
    """What was said as golden/ has it, whoever runs the tests and wherever."""
    said = said.replace(str(ROOT), "/CHECKOUT").replace(f".sweeps-{os.getuid()}", ".sweeps-UID")
    return said.replace(f" in {os.getuid()}|'')", " in UID|'')")


def script(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    plan = launcher.plan_submission(
        ["experiment=starter", "runs_dir=/RUNS", "data.root=/DATA", *SCRIPTS[name]],
        sweep=name in ("sweep", "pack"), after="99" if name == "after" else None, dry_run=True,
    )  # fmt: skip
    dry_run.print_plan(plan, as_json=True)
    return str(json.loads(capsys.readouterr().out)["script"])


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_batch_script_is_the_golden_one(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = golden(script(name, capsys)) + "\n"
    kept = GOLDEN / f"{name}.sh"
    if os.environ.get("WRITE_GOLDEN"):
        kept.write_text(made)
    assert made == kept.read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_golden_script_is_one_that_bash_can_read(name: str) -> None:
    read = subprocess.run(["bash", "-n", GOLDEN / f"{name}.sh"], capture_output=True, text=True)
    assert (read.returncode, read.stderr) == (0, "")


def test_no_golden_script_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.sh")} == set(SCRIPTS)


def test_a_dry_run_prints_the_golden_script_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runyard.cli.main import main

    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM here
    monkeypatch.chdir(tmp_path)
    assert (
        main(["submit", "--dry-run", "experiment=starter", "runs_dir=/RUNS", "data.root=/DATA", *SCRIPTS["nyu_torch"]])
        == 0
    )
    said = capsys.readouterr().out
    assert golden(said).startswith((GOLDEN / "nyu_torch.sh").read_text())
    assert "2 nodes, 4 tasks and 4 GPUs on each" in said
    assert "8 GPU-hours until the first time limit" in said
    assert "cluster.nodes: 1 -> 2" in said
    assert said.endswith("nothing was submitted (--dry-run)\n")
    assert list(tmp_path.iterdir()) == []


def batch(tmp_path: Path) -> SbatchJob:
    run = Run(tmp_path / "RUN", compose(["cluster=nyu_greene"]).config, {"id": "RUN", "jobs": []})
    return SbatchJob("RUN", run.path / "slurm", [run])


BREAKS = {
    "a newline in a value": {"comment": "x\nscancel --all"},
    "a newline in a name": {"additional_parameters": {"requeue": True, "x\ntrue": True, "zzz": "1"}},
    "a parameter lost": {"additional_parameters": {"no-kill\ntrue": True, "requeue": True, "kill-on-invalid-dep": "y"}},
}


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS)
def test_a_script_that_a_parameter_broke_is_refused_before_sbatch_sees_it(
    tmp_path: Path, slurm: FakeSlurm, broken: dict[str, object]
) -> None:
    made = batch(tmp_path)
    made.parameters |= broken
    with pytest.raises(UserError, match=r"the batch script lacks '#SBATCH --.*' before its first command"):
        made.submit()
    assert slurm.calls() == []


def test_a_folder_whose_name_slurm_would_expand_is_refused(tmp_path: Path, slurm: FakeSlurm) -> None:
    with pytest.raises(UserError, match=r"SLURM would expand the % in .*/50%j/"):
        batch(tmp_path / "50%j").submit()
    assert slurm.calls() == []


@pytest.mark.parametrize("odd", ["'", '"', "\\", "\n", "\t", "\u2028"])
def test_a_folder_whose_name_sbatch_would_misread_is_refused_with_nothing_created(
    tmp_path: Path, slurm: FakeSlurm, odd: str
) -> None:
    with pytest.raises(UserError, match="runs_dir: sbatch would misread the") as refused:
        batch(tmp_path / f"my{odd}runs").submit()
    assert "\n" not in str(refused.value)
    assert slurm.calls() == []
    assert list(tmp_path.iterdir()) == [slurm.folder]
    batch(tmp_path / "my runs").script()  # the control


def test_a_command_before_the_last_parameter_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = batch_script._make_sbatch_string
    monkeypatch.setattr(
        batch_script, "_make_sbatch_string",
        lambda *given, **more: make(*given, **more).replace("#SBATCH --gres", "module purge\n#SBATCH --gres"),
    )  # fmt: skip
    with pytest.raises(UserError, match="the batch script lacks '#SBATCH --nodes' before its first command"):
        batch(tmp_path).script()


def submitted(small: list[str], *overrides: str) -> list[Run]:
    plan = launcher.plan_submission(["experiment=null", *small, "cluster=slurm", *overrides], sweep=True)
    return [run for run, _ in launcher.submit(plan)]


@pytest.mark.parametrize("element", [None, 0, 1])
def test_srun_runs_the_snapshot_and_its_exit_code_reaches_the_judge(
    small: list[str], slurm: FakeSlurm, element: int | None
) -> None:
    python = slurm.program("python", '[ "$1" != -c ] || exit 0; env > "$here/python.env"; exit 42\n')
    runs = submitted(small, f"cluster.python={link(python, small)}", *(["seed=0,1"] * (element is not None)))
    run = runs[element or 0]
    array = {} if element is None else {"SLURM_ARRAY_JOB_ID": NUMBER, "SLURM_ARRAY_TASK_ID": str(element)}
    done = slurm.run_script(srun_ends_with=7, PYTHONPATH="/before", **array)
    assert (done.returncode, done.stderr) == (42, ""), "the judge's own exit code is the job's"
    job = f"{NUMBER}_{element}" if array else NUMBER
    judge = f"python -m runyard.cluster.job.requeue {run.path} 7 0 {run.path}/slurm/exclude-{job}"
    assert slurm.calls("python") == ["python -c import runyard.cluster.job.requeue", judge]
    for program in ("srun", "python"):
        path = slurm.env(f"{program}.env")["PYTHONPATH"].split(":")
        assert path == [str(run.code_path), "/before"]
        assert slurm.env(f"{program}.env")["PYTHONSAFEPATH"] == "1"
    assert slurm.env("srun.env")["SLURM_JOB_END_TIME"].isdigit()
    (srun,) = slurm.calls("srun")
    assert "--kill-on-bad-exit=1 --open-mode=append" in srun
    assert " -m runyard.cluster.job.task -u -m submitit.core._submit " in srun


def link(python: Path, small: list[str]) -> Path:
    """The same program at a path without a space, as cluster.python must be."""
    beside = Path(small[-1].partition("=")[2]).parent / "python"
    beside.symlink_to(python)
    return beside


def test_variables_that_would_override_the_script_do_not_reach_sbatch(
    small: list[str], slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"TIMELIMIT": "1", "MEM_PER_CPU": "1", "NO_REQUEUE": "1", "SIGNAL": "INT@1", "OUTPUT": "/x", "PARTITION": "a",
           "WAIT": "1", "ARRAY_INX": "0-2", "TEST_ONLY": "1"}  # fmt: skip
    for name, value in own.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    for name in ("ACCOUNT", "WCKEY", "RESERVATION", "HINT"):
        monkeypatch.setenv(f"SBATCH_{name}", "physics")
    submitted(small, "cluster.partition=short", "cluster.mem_gb=8", "cluster.extra.reservation=course")
    handed_on = {name for name in slurm.env("sbatch.env") if name.startswith("SBATCH_")}
    assert handed_on == {"SBATCH_ACCOUNT", "SBATCH_WCKEY", "SBATCH_HINT"}, "which no setting says"
    assert all(os.environ[f"SBATCH_{name}"] == value for name, value in own.items()), "ours are ours again"


def test_the_judge_that_a_script_calls_is_the_snapshots_own(small: list[str], slurm: FakeSlurm) -> None:
    (run,) = submitted(small)
    done = slurm.run_script(srun_ends_with=1)
    assert done.stdout == "runyard: crash: back into the queue, to go on at step 0\n", done.stderr
    assert done.returncode == ExitCode.REQUEUE
    assert slurm.calls("scontrol")[-1] == f"scontrol requeue {NUMBER}"
    assert (run.code_path / "runyard" / "cluster" / "__pycache__").exists(), "what was imported left no bytecode there"


def test_what_is_done_to_the_checkout_changes_nothing_for_a_job_that_waits(
    small: list[str], slurm: FakeSlurm, tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    for name in ("src", "cluster", "configs", "slurm"):
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    submit = [sys.executable, "-m", "runyard", "submit", "experiment=null", *small, "cluster=slurm"]
    subprocess.run(submit, cwd=checkout, check=True, capture_output=True,
                   env=os.environ | {"PYTHONPATH": f"{checkout / 'src'}:{checkout}"})  # fmt: skip
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    for name in ("requeue.sh", "python.sh"):
        (checkout / "slurm" / name).write_text("#!/bin/sh\nexit 99\n")
    slurm.program("srun", 'while [ "${1##*/}" != python.sh ]; do shift; done; exec "$1" -c "raise SystemExit(7)"\n')
    done = slurm.run_script()
    assert done.returncode == ExitCode.REQUEUE, done.stderr
    assert done.stdout == "runyard: crash: back into the queue, to go on at step 0\n"


def test_a_run_from_before_the_scripts_were_kept_uses_the_checkouts(tmp_path: Path) -> None:
    made = batch(tmp_path)
    (made.runs[0].path / "code" / "runyard").mkdir(parents=True)
    assert f"exec {ROOT}/slurm/requeue.sh {ROOT}/slurm/python.sh" in batch(tmp_path).script()
    (made.runs[0].path / "code" / "slurm").mkdir()
    (made.runs[0].path / "code" / "slurm" / "begin.sh").touch()
    assert f"exec {tmp_path}/RUN/code/slurm/requeue.sh {tmp_path}/RUN/code/slurm/python.sh" in batch(tmp_path).script()


def test_the_script_outlives_the_term_of_the_time_limit_and_what_it_starts_hears_it(
    small: list[str], slurm: FakeSlurm
) -> None:
    submitted(small)
    slurm.program("srun", "kill -TERM $(ps -o ppid= -p $PPID) $PPID $$; sleep 5\n")  # as SLURM, to all of its processes
    slurm.says("shown", "JobState=COMPLETING Reason=TimeLimit Dependency=(null)\n")
    done = slurm.run_script()
    assert done.returncode == ExitCode.REQUEUE, done.stderr
    assert done.stdout == "runyard: time limit: back into the queue, to go on at step 0\n"
    script = slurm.folder / "script"
    script.write_text(script.read_text().replace("srun --unb", "trap - TERM; srun --unb"))
    assert slurm.run_script().returncode == -signal.SIGTERM, "the control"


def test_a_set_e_of_the_users_does_not_keep_a_job_from_being_judged(small: list[str], slurm: FakeSlurm) -> None:
    submitted(small, "cluster.env_setup=['set -eu','export FROM_SETUP=1']")
    done = slurm.run_script(srun_ends_with=1)
    assert "back into the queue" in done.stdout, done.stderr
    assert slurm.env("srun.env")["FROM_SETUP"] == "1"


@pytest.fixture
def hasty(slurm: FakeSlurm) -> FakeSlurm:
    """Where the batch script waits a moment before it asks again, and not five seconds."""
    slurm.program("sleep", "exec /bin/sleep 0.02\n")
    return slurm


def test_a_controller_that_is_away_at_a_jobs_start_is_asked_until_it_is_back(
    small: list[str], hasty: FakeSlurm
) -> None:
    submitted(small)
    hasty.says("down", "40")
    done = hasty.run_script()
    assert 0 < int(hasty.env("srun.env")["SLURM_JOB_END_TIME"]) - time.time() <= 3600
    assert len(hasty.calls("srun")) == 1, done.stderr


def test_srun_that_got_no_step_because_the_controller_went_away_is_begun_again(
    small: list[str], hasty: FakeSlurm
) -> None:
    submitted(small)
    hasty.says("down", "6")
    done = hasty.run_script(SLURM_JOB_END_TIME=IN_AN_HOUR)
    assert len(hasty.calls("srun")) > 1
    assert hasty.env("srun.env")["SLURM_JOB_ID"] == NUMBER, "it began in the end"
    assert "Unable to confirm allocation" in done.stderr, "and what it said is kept"


def test_srun_of_a_job_that_a_controller_with_an_older_state_takes_for_pending_is_begun_again(
    small: list[str], hasty: FakeSlurm
) -> None:
    submitted(small)
    pending = f"srun: error: Unable to confirm allocation for job {NUMBER}: Job is pending execution"
    hasty.program("srun", f'[ "$(grep -c ^srun "$here/calls")" -gt 6 ] || {{ echo "{pending}" >&2; exit 1; }}\n')
    hasty.run_script(SLURM_JOB_END_TIME=IN_AN_HOUR)
    assert len(hasty.calls("srun")) == 7


def test_srun_that_is_refused_a_step_while_the_controller_is_up_ends_the_job(
    small: list[str], hasty: FakeSlurm
) -> None:
    submitted(small)
    hasty.says("srun says", "srun: error: Unable to create step for job 4711: Invalid node count\n")
    assert "crash: back into the queue" in hasty.run_script(srun_ends_with=1).stdout
    assert len(hasty.calls("srun")) == 2
    hasty.says("srun says", "srun: error: node1: task 0: Exited with exit code 1\n")
    hasty.run_script(srun_ends_with=1)
    assert len(hasty.calls("srun")) == 3, "a task's own end is not tried again here"


@pytest.mark.parametrize("end", ["Unknown", "N/A", "", "2001-01-01T00:00:00", "2099-01-01T00:00:00"])
def test_an_end_that_is_no_time_to_come_is_no_end(small: list[str], slurm: FakeSlurm, end: str) -> None:
    submitted(small)
    slurm.says("shown", f"   StartTime=2029-12-31T00:00:00 EndTime={end} Deadline=N/A\n")
    for said in ({}, {"SLURM_JOB_END_TIME": "5"}, {"SLURM_JOB_END_TIME": "soon"}):
        slurm.run_script(**said)
        assert "SLURM_JOB_END_TIME" not in slurm.env("srun.env")
    slurm.run_script(SLURM_JOB_END_TIME=IN_AN_HOUR)
    assert slurm.env("srun.env")["SLURM_JOB_END_TIME"] == IN_AN_HOUR, "since 23.02 SLURM says it itself"


def test_how_a_person_likes_squeue_to_look_never_reaches_a_jobs_own_questions(
    small: list[str], slurm: FakeSlurm
) -> None:
    submitted(small)
    own = {"SQUEUE_STATES": "PD", "SLURM_TIME_FORMAT": "relative", "SCONTROL_ALL": "1", "SACCT_FORMAT": "x"}
    slurm.run_script(**own, SLURM_CONF="/etc/slurm.conf")
    for program in ("scontrol", "srun"):
        seen = slurm.env(f"{program}.env")
        assert not own.keys() & seen.keys()
        assert seen["SLURM_CONF"] == "/etc/slurm.conf"


def test_a_submission_from_within_a_job_does_not_pass_that_jobs_sizes_on(
    small: list[str], slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "64", "SLURM_CONF": "/etc/slurm.conf"}.items():
        monkeypatch.setenv(name, value)
    submitted(small)
    seen = {name: value for name, value in slurm.env("sbatch.env").items() if name.startswith("SLURM_")}
    assert seen == {"SLURM_CONF": "/etc/slurm.conf"}
    assert os.environ["SLURM_NTASKS"] == "64"


def test_no_secret_of_the_environment_reaches_a_file(
    small: list[str], slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    submitted(small, "tracking=online", "seed=0,1")
    assert slurm.env("sbatch.env")["WANDB_API_KEY"] == API_KEY, "the control: the job itself has it"
    files = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    files[slurm.folder / "script"] = (slurm.folder / "script").read_bytes()
    assert len(files) > 50
    assert [path for path, content in files.items() if API_KEY.encode() in content] == []
