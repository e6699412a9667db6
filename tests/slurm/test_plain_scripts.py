"""slurm/*.sbatch on a real SLURM: several nodes, signals, killed ranks, other numbers of tasks, and the same bits."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.run import Run
from runyard.tracking import journal
from runyard.training import checkpoint
from tests.slurm.conftest import Cluster
from tests.training.conftest import final_state, same

pytestmark = pytest.mark.slow
EPOCHS, STEPS_PER_EPOCH = 24, 8
SETTINGS = (f"epochs={EPOCHS}", "checkpoint.every_s=0.2", "checkpoint.every_epochs=1", "checkpoint.keep_last=3")


def rows(run: Run, event: str) -> list[dict[str, Any]]:
    return [row for row in journal.read(run.journal_path)[0] if row["event"] == event]


@pytest.fixture(scope="module")
def whole(slurm: Cluster, make_run: Callable[..., Run]) -> Run:
    """A run that train.sbatch took to its end on two nodes of two tasks, and nothing interrupted."""
    run = make_run(*SETTINGS)
    job = slurm.submit("train.sbatch", run.path)
    assert slurm.end(job) == ("COMPLETED", "0:0"), slurm.said(job)
    return run


def interrupted(slurm: Cluster, run: Run, how: Callable[[str], object], script: str = "train.sbatch") -> str:
    """Start ``run``, do ``how`` to its job once some epochs are learned; the job, which ended within 15 seconds."""
    job = slurm.submit(script, run.path)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and len(rows(run, "epoch")) < 3:
        time.sleep(0.05)
    how(job)
    slurm.end(job, timeout_s=15)
    return job


def goes_on_to_the_bits_of(whole: Run, slurm: Cluster, run: Run, script: str = "train.sbatch") -> None:
    found = checkpoint.newest(run.checkpoints)
    assert found is not None
    assert 0 < found.step < EPOCHS * STEPS_PER_EPOCH, "it was to be interrupted on its way"
    job = slurm.submit(script, run.path)
    assert slurm.end(job) == ("COMPLETED", "0:0"), slurm.said(job)
    start = rows(run, "start")[-1]
    assert (start["step"], start["world_size"]) == (found.step, 4)
    assert same(final_state(whole), final_state(run))


def test_srun_trains_over_two_nodes_to_the_end(whole: Run) -> None:
    (start,) = rows(whole, "start")
    assert (start["launcher"], start["world_size"], start["nodes"]) == ("SLURM", 4, 2)
    assert rows(whole, "stop")[-1]["reason"] == "finished"


def test_torchrun_over_two_nodes_saves_when_asked_and_learns_the_same_bits(
    whole: Run, slurm: Cluster, make_run: Callable[..., Run]
) -> None:
    run, script = make_run(*SETTINGS), "train_torchrun.sbatch"
    interrupted(slurm, run, lambda job: slurm.lab.run("scancel", "--signal=USR2", job), script)
    assert rows(run, "stop")[-1]["reason"] == "interrupted"
    goes_on_to_the_bits_of(whole, slurm, run, script)
    start = rows(run, "start")[-1]
    assert (start["launcher"], start["world_size"], start["nodes"]) == ("torchrun", 4, 2)


def test_the_time_limits_signal_saves_and_the_same_line_goes_on_to_the_same_bits(
    whole: Run, slurm: Cluster, make_run: Callable[..., Run]
) -> None:
    run = make_run(*SETTINGS)
    job = interrupted(slurm, run, lambda job: slurm.lab.run("scancel", "--signal=USR2", job))
    assert slurm.end(job) == ("FAILED", "130:0"), slurm.said(job)
    stop, saved = rows(run, "stop")[-1], rows(run, "checkpoint")[-1]
    assert stop["reason"] == "interrupted"
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    assert newest.step == saved["step"]
    goes_on_to_the_bits_of(whole, slurm, run)


def test_a_run_of_four_tasks_goes_on_with_one_and_with_two(whole: Run, slurm: Cluster, tmp_path: Path) -> None:
    jobs = {}
    for tasks in (1, 2):
        shutil.copytree(whole.path, tmp_path / f"{tasks}" / whole.id, symlinks=True)
        run = Run.open(tmp_path / f"{tasks}" / whole.id)
        (run.path / "code").unlink()
        (run.path / "code").symlink_to(whole.code)
        *_, before, newest = checkpoint.valid(run.checkpoints)
        shutil.rmtree(newest.path)
        jobs[tasks] = (run, before.step, slurm.submit("train.sbatch", run.path, nodes=1, tasks=tasks))
    for tasks, (run, step, job) in jobs.items():
        assert slurm.end(job) == ("COMPLETED", "0:0"), slurm.said(job)
        start = rows(run, "start")[-1]
        assert (start["step"], start["world_size"], start["nodes"]) == (step, tasks, 1)
        assert final_state(run)["step"] == EPOCHS * STEPS_PER_EPOCH


def test_prepare_writes_a_data_set_on_a_node(slurm: Cluster, tmp_path: Path) -> None:
    settings = ("data=synthetic", "data.samples=[40,20]", f"data.root={tmp_path}")
    job = slurm.submit("prepare.sbatch", *settings, nodes=1, tasks=1)
    assert slurm.end(job) == ("COMPLETED", "0:0"), slurm.said(job)
    (manifest,) = tmp_path.glob("*/manifest.json")
    assert json.loads(manifest.read_text())["splits"]["train"]["samples"] == 40


@pytest.mark.parametrize("script", ["train.sbatch", "train_torchrun.sbatch"])
def test_what_is_no_run_is_refused_in_one_line(slurm: Cluster, tmp_path: Path, script: str) -> None:
    job = slurm.submit(script, tmp_path)
    assert slurm.end(job) == ("FAILED", "2:0")
    assert slurm.said(job) == f"{script}: {tmp_path}: expected a run's directory, as runyard create prints\n"
