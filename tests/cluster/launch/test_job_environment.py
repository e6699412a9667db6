"""Before Python: the user's own commands, of which one that fails ends the job, and what a container is shown."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from runyard.cluster.launch import submit as launcher
from runyard.cluster.launch.job_environment import bound_folders, checked_lines, container_options
from runyard.cluster.monitor.run_status import run_status
from runyard.errors import UserError
from runyard.runs.events import StopEvent
from runyard.runs.run import Run
from runyard.runs.summary import RunSummary
from tests.cluster.launch.test_batch_script import submitted
from tests.support.fake_slurm import NUMBER, SRUN, FakeSlurm
from tests.support.settings import ROOT, compose

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


def test_a_job_names_what_a_container_must_see(small: list[str], slurm: FakeSlurm, tmp_path: Path) -> None:
    submitted(small, "cluster.stage_data=$SLURM_TMPDIR")
    slurm.run_script(SLURM_TMPDIR="/node/disk")
    bound = slurm.env("srun.env")["RUNYARD_BIND"].split(":")
    data_root = next(setting for setting in small if setting.startswith("data.root=")).partition("=")[2]
    assert {str(ROOT), str(tmp_path / "runs"), data_root, "/node/disk"} <= set(bound)


def test_a_folder_that_is_a_link_is_bound_by_both_its_names(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    config = compose("cluster=slurm", f"runs_dir={tmp_path / 'runs'}")
    assert {str(tmp_path / "runs"), str(tmp_path / "disk")} <= set(bound_folders(config))


def test_a_run_that_is_resumed_in_another_working_directory_is_bound_where_it_lies(
    small: list[str], slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    settings = ["experiment=null", *small, "cluster=slurm", "runs_dir=runs"]
    monkeypatch.chdir(tmp_path / "here")
    (point,) = launcher.plan_submission(settings).configs
    run = launcher.create_run(point, None, None)
    monkeypatch.chdir(tmp_path / "there")
    launcher.resume(run, [])
    slurm.run_script()
    bound = slurm.env("srun.env")["RUNYARD_BIND"].split(":")
    assert str(tmp_path / "here" / "runs") in bound
    assert str(tmp_path / "there" / "runs") not in bound


def test_pyxis_gets_the_image_and_the_folders_and_the_judge_runs_in_it_too(
    small: list[str], slurm: FakeSlurm, tmp_path: Path
) -> None:
    python = slurm.program("python", 'case "$*" in *"import runyard"*) exit 1 ;; esac\n')
    (tmp_path / "python").symlink_to(python)
    submitted(
        small, "cluster.container_image='nvcr.io#nvidia/pytorch:25.01-py3'", f"cluster.python={tmp_path / 'python'}"
    )
    slurm.program("srun", 'case "$*" in *runyard.cluster.job.requeue*) exit ;; esac\n' + SRUN)
    done = slurm.run_script(srun_ends_with=1)
    assert len(slurm.calls("srun")) == 3, done.stderr
    training, asked, judge = slurm.calls("srun")
    runs = f"{tmp_path / 'runs'}:{tmp_path / 'runs'}"
    for call in (training, judge):
        assert "--container-image=nvcr.io#nvidia/pytorch:25.01-py3" in call
        assert runs in call
    assert "-m runyard.cluster.job.requeue" in judge
    assert "import runyard.cluster.job.requeue" in asked


def test_a_folder_that_pyxis_cannot_mount_by_its_name_is_refused() -> None:
    config = compose("cluster=slurm", "cluster.container_image=image.sqsh", "cluster.stage_data=$SLURM_TMPDIR")
    with pytest.raises(UserError, match=r"\$SLURM_TMPDIR cannot be mounted"):
        container_options(config)
    assert container_options(compose("cluster=slurm", "cluster.stage_data=$SLURM_TMPDIR")) == [], "the control"
