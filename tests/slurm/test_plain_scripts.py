"""slurm/*.sbatch on a real SLURM: several nodes, signals, killed ranks, and the bits that `runyard submit` comes to."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runyard.runs.run import Run
from tests.support.lab import Cluster
from tests.support.slurm_runs import (
    OFTEN,
    RARE,
    Runs,
    at_once,
    last_save,
    learned_step,
    plain_tasks,
    rows,
    said,
    saved_step,
    until_finished,
    until_learning,
    went_on,
)

pytestmark = pytest.mark.slow


def torchrun_struck_twice(runs: Runs) -> tuple[Run, str, float]:
    """By the time limit's signal, then by the death of a rank. It puts itself back into the queue."""
    run = runs.create(*OFTEN, "cluster.tasks_per_node=2", "cluster.requeue=true")
    job = runs.cluster.submit("train_torchrun.sbatch", run.path)
    until_learning(run)
    runs.sandbox.run("scancel", "--signal=USR2", job)
    until_learning(run, start=2)
    killed_at = time.time()
    os.kill(plain_tasks(run)[-1], signal.SIGKILL)
    until_finished(run)
    return run, job, killed_at


def srun_struck(runs: Runs) -> tuple[Run, str]:
    run = runs.create(*OFTEN, "cluster.requeue=true")
    job = runs.cluster.submit("train.sbatch", run.path, tasks=1)
    until_learning(run)
    os.kill(plain_tasks(run)[-1], signal.SIGKILL)
    until_finished(run)
    return run, job


def srun_submitted_again(runs: Runs) -> tuple[Run, tuple[str, str], int, int]:
    run = runs.create(*RARE, "cluster.requeue=false")
    job = runs.cluster.submit("train.sbatch", run.path, tasks=1)
    until_learning(run)
    runs.sandbox.run("scancel", "--signal=USR2", job)
    ended, learned, saved = runs.cluster.end(job), learned_step(run), saved_step(run)
    runs.cluster.submit("train.sbatch", run.path, tasks=1)
    until_finished(run)
    return run, ended, learned, saved


@pytest.fixture(scope="module")
def told(runs: Runs) -> Iterator[Callable[[Callable[[Runs], Any]], Any]]:
    with at_once(runs, torchrun_struck_twice, srun_submitted_again, srun_struck) as told:
        yield told


def test_torchrun_over_two_nodes_goes_on_by_itself_after_a_signal_and_a_killed_rank(
    told: Any, runs: Runs, whole_of_four: Run
) -> None:
    run, job, killed_at = told(torchrun_struck_twice)
    start = went_on(run, whole_of_four, most_restarts=2)
    assert (start["launcher"], start["world_size"], start["nodes"], start["restarts"]) == ("torchrun", 4, 2, 2)
    assert [row["cause"] for row in rows(run, "requeue")] == ["time limit", "crash"]
    assert last_save(run, killed_at) <= start["step"], "no more is lost than was not saved"
    assert runs.cluster.end(job) == ("COMPLETED", "0:0"), runs.cluster.said(job)


def test_srun_over_two_nodes_goes_on_by_itself_after_a_killed_rank(told: Any, runs: Runs, whole: Run) -> None:
    run, job = told(srun_struck)
    start = went_on(run, whole)
    assert (start["launcher"], start["world_size"], start["nodes"], start["restarts"]) == ("SLURM", 2, 2, 1)
    assert [row["cause"] for row in rows(run, "requeue")] == ["crash"]
    assert runs.cluster.end(job) == ("COMPLETED", "0:0"), runs.cluster.said(job)


def test_the_time_limits_signal_saves_and_the_same_line_goes_on_to_the_same_bits(told: Any, whole: Run) -> None:
    run, ended, learned, saved = told(srun_submitted_again)
    assert ended == ("FAILED", "130:0"), said(run)
    assert (rows(run, "stop")[0]["reason"], rows(run, "requeue")) == ("interrupted", [])
    assert 0 < learned <= saved == went_on(run, whole)["step"]


def test_prepare_writes_a_data_set_on_a_node(wide: Cluster, tmp_path: Path) -> None:
    settings = ("data=synthetic", "data.samples=[40,20]", f"data.root={tmp_path}")
    job = wide.submit("prepare.sbatch", *settings, nodes=1, tasks=1)
    assert wide.end(job) == ("COMPLETED", "0:0"), wide.said(job)
    (manifest,) = tmp_path.glob("*/manifest.json")
    assert json.loads(manifest.read_text())["splits"]["train"]["samples"] == 40


@pytest.mark.parametrize("script", ["train.sbatch", "train_torchrun.sbatch"])
def test_what_is_no_run_is_refused_in_one_line(wide: Cluster, tmp_path: Path, script: str) -> None:
    job = wide.submit(script, tmp_path)
    assert wide.end(job) == ("FAILED", "2:0")
    assert wide.said(job) == f"{script}: {tmp_path}: expected a run's directory, as runyard create prints\n"
