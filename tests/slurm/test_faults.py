"""Whatever happens to a job, its run goes on by itself to the bits of the uninterrupted run, or says why not."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from cluster.rehearse import tasks_of
from runyard.run import Run
from tests.slurm.conftest import Cluster
from tests.slurm.runs import (
    OFTEN,
    RARE,
    Runs,
    job,
    rows,
    said,
    saved_step,
    until,
    until_finished,
    until_learning,
    went_on,
)
from tests.training.conftest import final_state, same

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(slurm: Cluster, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(slurm.lab, data_root, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(runs: Runs) -> Run:
    """What nothing interrupted."""
    run = runs.submit(*RARE)
    until_finished(run)
    return run


def test_a_run_on_two_nodes_of_two_tasks_comes_to_its_end(runs: Runs, whole: Run) -> None:
    run = runs.submit("cluster.tasks_per_node=2")
    until_finished(run)
    (start,) = rows(run, "start")
    assert (start["launcher"], start["world_size"], start["nodes"], start["job_id"]) == ("SLURM", 4, 2, job(run))
    assert (rows(whole, "start")[0]["world_size"], rows(whole, "requeue")) == (2, [])


def test_before_the_time_limit_it_saves_every_step_and_goes_on(runs: Runs, whole: Run) -> None:
    """Its ranks are held still, so that however fast the machine it cannot be finished. SLURM's signal wakes them."""
    run = runs.submit(*RARE, "cluster.timeout_min=2", "cluster.signal_delay_s=88")
    until_learning(run)
    for pid in tasks_of(run).values():
        os.kill(pid, signal.SIGSTOP)
    learned, held = rows(run, "epoch")[-1]["step"], len(rows(run, "requeue"))
    went_on(run, whole, most_restarts=9)  # on a slow machine a limit may come before it is held, and after, too
    stop, requeues = rows(run, "stop")[held], rows(run, "requeue")
    assert (stop["reason"], stop["cause"], requeues[held]["cause"]) == ("interrupted", "USR2", "time limit")
    assert learned <= requeues[held]["step"]
    resumed = [start["step"] for start in rows(run, "start")[1:]]
    assert resumed == [requeue["step"] for requeue in requeues], "what it had learned it had saved"


@pytest.mark.parametrize("warned", [True, False])
def test_a_preempted_run_goes_on_when_the_nodes_are_free_again(runs: Runs, whole: Run, warned: bool) -> None:
    runs.lab.signal_preempted(warned)
    run = runs.submit(*(RARE if warned else OFTEN), "cluster.partition=low")
    until_learning(run)
    runs.lab.run("sbatch", "--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap", "sleep 2")
    start = went_on(run, whole)
    assert start["restarts"] == 1
    if warned:
        assert rows(run, "stop")[0]["reason"] == "interrupted"
        last = [row for row in rows(run) if row["event"] in ("checkpoint", "start")]
        assert start["step"] == last[last.index(start) - 1]["step"], "what it had learned it had saved"


def test_a_requeue_by_the_administrator_costs_what_was_not_saved(runs: Runs, whole: Run) -> None:
    run = runs.submit(*OFTEN)
    until_learning(run)
    runs.lab.run("scontrol", "requeue", job(run))
    went_on(run, whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_job_soon_and_it_goes_on(runs: Runs, whole: Run, rank: int) -> None:
    run = runs.submit(*OFTEN)
    until_learning(run)
    killed_at = time.time()
    os.kill(tasks_of(run)[rank], signal.SIGKILL)
    went_on(run, whole)
    (requeue,) = rows(run, "requeue")
    assert (requeue["cause"], requeue["without_progress"]) == ("crash", 1)
    assert requeue["t"] - killed_at < 10


@pytest.mark.parametrize("which", ["first", "last"])
def test_a_node_without_power_is_replaced(runs: Runs, whole: Run, which: str) -> None:
    """The first node of a job runs its batch script."""
    run = runs.submit(*OFTEN)
    until_learning(run)
    nodes = runs.lab.run("scontrol", "show", "hostnames", rows(run, "start")[0]["nodelist"]).split()
    lost = nodes[0 if which == "first" else -1]
    runs.lab.power_off(lost)
    start = went_on(run, whole)
    assert lost not in runs.lab.run("scontrol", "show", "hostnames", start["nodelist"]).split()


def test_an_orphan_that_wakes_writes_nothing(runs: Runs) -> None:
    """A node loses its link, the job goes on elsewhere, and the old task finds itself awake again.

    The old srun wakes too, and may end the step of its number, which is now the new job's: one more restart.
    """
    whole = runs.submit(*OFTEN, "cluster.nodes=1", "cluster.nodelist=node3")
    run = runs.submit(*OFTEN, "cluster.nodes=1", "cluster.exclude=node3")
    until_learning(run)
    node, orphan = rows(run, "start")[0]["nodelist"], tasks_of(run)[0]
    runs.lab.freeze(node)
    until(lambda: len(rows(run, "start")) == 2, run)
    runs.lab.thaw(node)
    until_finished(whole)
    went_on(run, whole, most_restarts=2)
    until(lambda: not Path(f"/proc/{orphan}").exists(), run)
    events = [row["event"] for row in rows(run)]
    assert events[events.index("start", 1) :].count("stop") == 1, said(run)


def test_a_controller_that_is_killed_and_comes_back_changes_nothing(runs: Runs, whole: Run) -> None:
    run = runs.submit(*RARE)
    until_learning(run)
    runs.lab.restart_controller()
    until_finished(run)
    assert len(rows(run, "start")) == 1
    assert same(final_state(whole), final_state(run))


def test_scancel_saves_and_the_run_goes_on_only_when_it_is_asked_to(runs: Runs, whole: Run) -> None:
    run = runs.submit(*RARE)
    until_learning(run)
    runs.lab.run("scancel", job(run))
    until(lambda: rows(run, "stop"), run)
    until(lambda: job(run) not in runs.queue(), run)
    assert (rows(run, "stop")[0]["cause"], rows(run, "requeue")) == ("TERM", [])
    assert saved_step(run) > 0
    assert runs.resume(run).returncode == 0
    went_on(run, whole)


DIES = """#!/bin/sh
case "$*" in *cluster.task*) kill -KILL $$ ;; esac
exec {python} "$@"
"""


def test_three_restarts_without_progress_are_the_end(runs: Runs, tmp_path: Path) -> None:
    dies = tmp_path / "python"
    dies.write_text(DIES.format(python=sys.executable))
    dies.chmod(0o755)
    run = runs.submit("cluster.nodes=1", f"cluster.python={dies}")
    until(lambda: rows(run, "stop"), run)
    assert [row["without_progress"] for row in rows(run, "requeue")] == [1, 2, 3]
    (stop,) = rows(run, "stop")
    assert stop["message"].startswith("given up: 3 restarts without progress at step 0")
    until(lambda: job(run) not in runs.queue(), run)
