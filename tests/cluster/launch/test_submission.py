"""`runyard submit` and `create` on a login node: what comes to be, and what is refused with nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.cli.commands import submit as verb
from runyard.cli.main import main
from runyard.cluster.launch import submit as launcher
from runyard.config.compose import compose, expand
from runyard.errors import UserError
from runyard.runs.journal import Journal
from runyard.runs.run import Run, sweeps_dir
from tests.support.fake_slurm import NUMBER, SBATCH, FakeSlurm
from tests.support.settings import PATIENCE_S

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """``refused("submit", "epochs=0")``: the one line it says. Fails unless no run and no job came of it."""
    monkeypatch.chdir(tmp_path)

    def check(*argv: str) -> str:
        code = main(list(argv))
        out, err = capsys.readouterr()
        assert (code, out, len(err.splitlines())) == (2, "", 1), (code, out, err)
        left = [p for p in (tmp_path / "runs").rglob("*") if not p.relative_to(tmp_path).parts[1].startswith(".")]
        assert left == [], "something half-made was left"
        return err.removeprefix("runyard: ").strip()

    return check


def test_a_submission_prints_run_job_and_directory_and_what_comes_next(
    small: list[str], slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *small, "experiment=null", "cluster=slurm", "cluster.nodes=2"]) == 0
    first, *rest, differs = capsys.readouterr().out.splitlines()
    assert differs.startswith("differs from the defaults (`runyard settings`): ")
    assert "model.name=starter" in differs
    found = re.fullmatch(rf"run (\S+), job {NUMBER}, in (\S+)", first)
    assert found, first
    run = Run.open(found[2])
    assert [line.partition(":")[2].strip() for line in rest] == [
        f"runyard status {run.cli_reference}",
        f"runyard logs -f {run.cli_reference}",
        f"runyard cancel {run.cli_reference}",
    ]
    (job,) = run.record["jobs"]
    assert isinstance(job.pop("submitted"), float)
    script = run.path / "slurm" / f"submission_{job.pop('token')}.sh"
    assert job == {"id": NUMBER, "launcher": "slurm", "cluster": "slurm", "nodes": 2, "tasks_per_node": 1,
                   "gpus_per_node": 0, "logs": "slurm"}  # fmt: skip
    assert script.read_text() == (slurm.folder / "script").read_text()
    assert "submission" not in run.record
    assert slurm.queue == [run.id]


def test_a_command_that_srun_starts_several_times_says_that_each_submits(
    small: list[str], slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for task, warned in (("0", False), ("1", True)):  # the first is the control
        monkeypatch.setenv("SLURM_PROCID", task)
        assert main(["submit", "--dry-run", *small, "experiment=null", "cluster=slurm"]) == 0
        assert ("SLURM_PROCID=1: each task of this step submits" in capsys.readouterr().err) is warned


def test_what_create_made_and_report_wrote_is_there_for_a_script(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["create", *small, "experiment=null", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert main(["create", "-m", *small, "experiment=null", "seed=0,1", "--json"]) == 0
    grid = json.loads(capsys.readouterr().out)
    assert [Run.open(made["path"]).id for made in (one, *grid)] == [made["run"] for made in (one, *grid)]
    assert [Run.open(made["path"]).config.seed for made in grid] == [0, 1]
    assert main(["report", one["path"], "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written == {"run": one["run"], "report": f"{one['path']}/report/index.html"}
    assert Path(written["report"]).is_file()


def test_a_sweep_is_one_array_with_a_run_per_point(
    small: list[str], slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["-m", "optim.lr=0.1,0.2", "seed=0,1,2"]
    assert main(["submit", *small, "experiment=null", "cluster=slurm", *grid, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["job"] for row in rows] == [f"{NUMBER}_{n}" for n in range(6)]
    runs = [Run.open(row["path"]) for row in rows]
    assert [(run.config.optim.lr, run.config.seed) for run in runs] == [(x, s) for x in (0.1, 0.2) for s in (0, 1, 2)]
    (sweep,) = {run.record["sweep"] for run in runs}
    folder = sweeps_dir(runs[0].path.parent) / sweep
    assert (folder / "runs.txt").read_text().splitlines() == [str(run.path) for run in runs]
    assert {(run.path / run.record["jobs"][0]["logs"]).resolve() for run in runs} == {folder.resolve()}
    assert len(list(folder.glob("submission_*.pkl"))) == 6
    assert len(slurm.submissions) == 1, "one array"
    assert slurm.queue == [sweep]


def test_the_commands_that_are_printed_after_a_grid_find_its_runs_wherever_they_lie(
    small: list[str], slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["submit", "-m", *small, "experiment=null", "cluster=slurm", "seed=0,1"]
    monkeypatch.chdir(tmp_path)
    assert main([*words, "runs_dir='two words'"]) == 0
    printed = [line.partition(": ")[2].strip() for line in capsys.readouterr().out.splitlines()]
    status, compare, cancel = [shlex.split(line) for line in printed if line.startswith("runyard ")]
    assert [command[-2:] for command in (compare, cancel)] == [["--runs-dir", str(tmp_path / "two words")]] * 2
    assert main(status[1:]) == 0
    assert capsys.readouterr().out.count("custom: waiting") == 2
    assert main([*words, "runs_dir=runs"]) == 0
    assert "--runs-dir" not in capsys.readouterr().out, "the control"


def test_points_that_differ_in_the_cluster_are_no_array(refused: Refused, small: list[str], slurm: FakeSlurm) -> None:
    assert refused("submit", *small, "-m", "cluster=slurm", "cluster.nodes=1,2").startswith("-m: ")
    assert slurm.submissions == []


@pytest.mark.parametrize("missing", ["sbatch", "srun"])
def test_without_slurm_nothing_is_created(
    refused: Refused, small: list[str], slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setenv("PATH", str(slurm.bin))
    (slurm.bin / "bash").symlink_to("/bin/bash")
    (slurm.bin / missing).unlink()
    said = refused("submit", *small, "experiment=null", "cluster=slurm")
    assert said.startswith(f"no {missing} on this machine: submit from a cluster's login node")
    assert not (slurm.folder.parent / "runs").exists()


@pytest.mark.parametrize("grid", [[], ["-m", "seed=0,1"]], ids=["one run", "a sweep"])
def test_what_sbatch_refuses_is_gone_again(
    refused: Refused, small: list[str], slurm: FakeSlurm, grid: list[str]
) -> None:
    reasons = "sbatch: error: QOSMaxGRESPerUser\nsbatch: error: Batch job submission failed: Job violates policy\n"
    slurm.says("refusal", reasons)
    said = refused("submit", *small, "experiment=null", "cluster=slurm", *grid)
    assert "sbatch refuses it (QOSMaxGRESPerUser, Batch job submission failed: Job violates policy)" in said
    assert slurm.queue == []


AFTER: list[tuple[str, str]] = [
    ("cluster=local", "--after 7: "),
    ("cluster=nyu_torch cluster.gpus_per_node=3", "batch_size=32 "),
]


@pytest.mark.parametrize(("overrides", "message"), AFTER)
def test_what_cannot_wait_for_another_job_is_refused(
    refused: Refused, small: list[str], slurm: FakeSlurm, overrides: str, message: str
) -> None:
    assert message in refused("submit", *small, "experiment=null", "--after", "7", *overrides.split())
    assert slurm.submissions == []


def test_after_a_run_means_after_its_newest_job_and_needs_no_data_yet(
    small: list[str], slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = launcher.submit(launcher.plan_submission(["experiment=null", *small, "cluster=slurm"]))[0]
    first.add_job({"id": "99_3", "launcher": "slurm"})
    slurm.says("known", "99_3|PENDING|None|0:00|10:00|N/A||sweep\n")
    later = ["submit", *small, "experiment=null", "cluster=slurm", f"data.root={tmp_path / 'to come'}"]
    assert main([*later, "--after", str(first.path)]) == 0
    assert "#SBATCH --dependency=afterok:99_3" in (slurm.folder / "script").read_text().splitlines()
    assert main(later) == 2, "the control: a job that waits for nothing needs it now"
    assert "no prepared data there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("after", "dependency"),
    [("afterany:{}", "afterany:99"), ("afternotok:{}", "afternotok:99"), ("afterok:{}", "afterok:99"),
     ("afterany:99", "afterany:99")],
)  # fmt: skip
def test_after_can_also_mean_once_it_has_ended_or_failed(
    small: list[str], slurm: FakeSlurm, after: str, dependency: str
) -> None:
    first, _ = launcher.submit(launcher.plan_submission(["experiment=null", *small, "cluster=slurm"]))[0]
    first.add_job({"id": "99", "launcher": "slurm"})
    slurm.says("known", "99|RUNNING|None|0:00|10:00|N/A||a\n")
    words = ["submit", *small, "experiment=null", "cluster=slurm", "--after", after.format(first.path)]
    assert main(words) == 0
    lines = (slurm.folder / "script").read_text().splitlines()
    assert [line for line in lines if "dependency" in line] == [f"#SBATCH --dependency={dependency}"]


def test_after_a_run_that_has_no_job_is_refused(refused: Refused, tmp_path: Path, slurm: FakeSlurm) -> None:
    run = Run.create(compose([f"runs_dir={tmp_path / 'elsewhere'}"]).config, [])
    assert f"--after {run.path}: " in refused("submit", "cluster=slurm", "--after", str(run.path))
    for odd in ("7x", "before:7", "\u00b2", "5_", "1_2_3"):
        assert f"no run {odd} in runs" in refused("submit", "cluster=slurm", "--after", odd)


def test_after_a_run_means_also_a_job_that_another_command_put_on_slurm(small: list[str], slurm: FakeSlurm) -> None:
    first = Run.create(compose(["experiment=null", *small, "cluster=slurm"]).config, [])
    Journal(first.journal_path).write("start", job_id="40", launcher="SLURM", nodes=1)
    slurm.says("known", f"40|RUNNING|None|0:00|10:00|N/A|node1|{first.id}\n")
    assert main(["submit", *small, "experiment=null", "cluster=slurm", "--after", str(first.path)]) == 0
    assert "#SBATCH --dependency=afterok:40" in (slurm.folder / "script").read_text().splitlines()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_submission_that_ends_while_sbatch_answers_leaves_no_job_and_no_run(
    small: list[str], slurm: FakeSlurm, tmp_path: Path, sent: signal.Signals
) -> None:
    slurm.program("sbatch", SBATCH.replace('echo "Submitted', 'sleep 60; echo "Submitted'))
    command = [sys.executable, "-m", "runyard", "submit", *small, "experiment=null", "cluster=slurm"]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as submitting:
        while not slurm.queue:
            assert submitting.poll() is None, submitting.communicate()
            time.sleep(0.05)
        submitting.send_signal(sent)
        assert submitting.wait(PATIENCE_S) == 130
        os.killpg(submitting.pid, signal.SIGKILL)  # sbatch itself, which sleeps on
    assert slurm.queue == []
    assert list((tmp_path / "runs").glob("[!.]*")) == []


def test_one_configuration_is_printed_and_not_a_grid(refused: Refused, small: list[str]) -> None:
    for more in (["-m", "seed=0,1"], ["--json"]):
        assert refused("submit", *small, "--cfg", "job", *more).startswith("--cfg job prints one configuration")


def test_a_run_to_wait_for_is_looked_for_where_the_new_one_would_lie(small: list[str], slurm: FakeSlurm) -> None:
    first, _ = launcher.submit(launcher.plan_submission(["experiment=null", *small, "cluster=slurm"]))[0]
    slurm.says("known", f"{NUMBER}|PENDING|None|0:00|10:00|N/A||{first.id}\n")
    for grid in ([], ["-m", "seed=0,1"]):
        assert main(["submit", *small, "experiment=null", "cluster=slurm", "--after", first.id, *grid]) == 0
        assert f"#SBATCH --dependency=afterok:{NUMBER}" in (slurm.folder / "script").read_text().splitlines()


def test_a_sweep_on_slurm_is_not_followed_and_nothing_is_submitted(
    refused: Refused, small: list[str], slurm: FakeSlurm
) -> None:
    said = refused("submit", "-m", *small, "experiment=null", "cluster=slurm", "seed=0,1", "--attach")
    assert said.startswith("--attach follows a single run, and this submission has 2; leave it out")
    assert slurm.submissions == []


GRIDS: list[tuple[list[str], list[list[str]]]] = [
    (["seed=1"], [["seed=1"]]),
    (["epochs=1,2", "name=x,y", "seed=3"], [["epochs=1", "name=x", "seed=3"], ["epochs=1", "name=y", "seed=3"],
                                            ["epochs=2", "name=x", "seed=3"], ["epochs=2", "name=y", "seed=3"]]),
    (["seed=range(0,3)"], [["seed=0"], ["seed=1"], ["seed=2"]]),
    (["data.samples=[4,2],[8,2]"], [["data.samples=[4,2]"], ["data.samples=[8,2]"]]),
    (["data.samples=[4,2]"], [["data.samples=[4,2]"]]),
    (["name='a,b'"], [["name='a,b'"]]),
    (["data.root='/a b,c','/d'"], [["data.root='/a b,c'"], ["data.root='/d'"]]),
    (["+model=starter,paper_resnet"], [["model=starter"], ["model=paper_resnet"]]),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "points"), GRIDS, ids=[str(overrides) for overrides, _ in GRIDS])
def test_a_grid_is_in_the_order_of_writing_the_last_setting_fastest(
    overrides: list[str], points: list[list[str]]
) -> None:
    assert expand(overrides) == points


@pytest.mark.parametrize("override", ["seed=0,", "model=glob(*)", "seed", "seed=[1,2"])
def test_a_grid_that_cannot_be_read_is_refused_by_name(override: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(override)}: "):
        expand([override])


@pytest.mark.parametrize(("cluster", "there", "picked"), [
    ("cluster=nyu_torch", 0, "paper"),
    ("cluster=slurm", 8, "starter"),
    ("cluster=slurm cluster.gpus_per_node=2", 0, "paper"),
    ("cluster=local", 0, "starter"),
    ("cluster=local", 1, "paper"),
])  # fmt: skip
def test_auto_picks_by_the_gpus_where_the_job_will_run(
    monkeypatch: pytest.MonkeyPatch, cluster: str, there: int, picked: str
) -> None:
    monkeypatch.setattr("runyard.config.compose.gpu_count", lambda: there)
    assert compose(["experiment=auto", *cluster.split()]).config.name == picked


class Here:
    """Stands for jobs on this machine, and says how each point's ends."""

    def __init__(self, *codes: int) -> None:
        self.codes, self.seeds, self.sweeps, self.followed = list(codes), [], [], 0

    def start(self, point: Any, sweep: str) -> tuple[Any, Any]:
        assert self.followed == len(self.seeds), "the one before was to be followed to its end first"
        self.seeds.append(point.config.seed)
        self.sweeps.append(sweep)
        return point, None

    def follow(self, run: Any, job: Any, *, quiet: bool, recipe: str) -> tuple[int, dict[str, Any]]:
        self.followed += 1
        return self.codes.pop(0), {"run": self.seeds[-1]}


@pytest.mark.parametrize(("codes", "seeds", "code"), [
    ((0, 0, 0), [3, 1, 2], 0), ((0, 1, 0), [3, 1, 2], 1), ((1, 130, 0), [3, 1], 130)],
    ids=["all are well", "one fails and the rest go on", "Ctrl-C ends all"])  # fmt: skip
def test_the_points_of_a_sweep_here_run_one_after_the_other_and_can_be_compared(
    small: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    codes: tuple[int, ...],
    seeds: list[int],
    code: int,
) -> None:
    here = Here(*codes)
    monkeypatch.setattr(launcher, "start_local", here.start)
    monkeypatch.setattr(verb, "follow_to_end", here.follow)
    assert main(["submit", *small, "experiment=null", "-m", "seed=3,1,2"]) == code
    assert here.seeds == seeds
    (sweep,) = set(here.sweeps)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"compare them: runyard compare --sweep {sweep} --runs-dir ")


def test_the_points_of_a_sweep_here_are_one_json_document(
    small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Here(0, 1)
    monkeypatch.setattr(launcher, "start_local", here.start)
    monkeypatch.setattr(verb, "follow_to_end", here.follow)
    assert main(["submit", *small, "experiment=null", "-m", "seed=3,1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == [{"run": 3}, {"run": 1}]


def test_ctrl_c_while_a_job_on_slurm_is_followed_leaves_it_and_a_script_its_number(
    small: list[str], slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: object, job: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("runyard.cluster.monitor.attach.JobFollower.follow", interrupted)
    assert main(["submit", *small, "experiment=null", "cluster=slurm", "--attach", "--json"]) == 130
    said = json.loads(capsys.readouterr().out)
    assert (said["job"], said["outcome"], slurm.queue) == (NUMBER, "left", [said["run"]])


def test_a_run_started_here_says_in_its_record_of_which_sweep_it_is(
    small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "launch", lambda run: None)
    (point,) = launcher.plan_submission([*small, "experiment=null"]).configs
    assert launcher.start_local(point, "a-sweep")[0].record["sweep"] == "a-sweep"
    assert launcher.start_local(point)[0].record["sweep"] is None


def test_a_sweep_here_cannot_be_left_alone(refused: Refused, small: list[str]) -> None:
    assert refused("submit", *small, "experiment=null", "-m", "seed=0,1", "--detach").startswith("--detach: ")


def test_create_makes_every_point_of_a_grid_and_lists_them(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["create", *small, "-m", "seed=5,4"]) == 0
    runs = [Run.open(line) for line in capsys.readouterr().out.splitlines()]
    assert [run.config.seed for run in runs] == [5, 4]
    assert len({run.record["sweep"] for run in runs}) == 1
