"""One command puts runs on the queue: arrays, chains, the same run twice, another size; and refuses what cannot run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from runyard.runs.run import Run
from tests.support.settings import PATIENCE_S, ROOT
from tests.support.slurm_runs import (
    EPOCHS,
    OFTEN,
    RARE,
    STEPS,
    Runs,
    at_once,
    job,
    rows,
    said,
    until,
    until_finished,
    until_learning,
)
from tests.support.trainings import final_state

pytestmark = pytest.mark.slow


def other_sizes(runs: Runs) -> Run:
    """One run on four tasks, on one and on two."""
    run = runs.submit(*OFTEN, f"epochs={2 * EPOCHS}", "cluster.tasks_per_node=2")
    for start, (nodes, tasks) in enumerate(((1, 1), (2, 1)), 1):
        until_learning(run, start=start)
        runs.sandbox.run("scancel", job(run))
        until(lambda start=start: len(rows(run, "stop")) == start, run)
        until(lambda: job(run) not in runs.queue(), run)
        resumed = runs.resume(run, f"cluster.nodes={nodes}", f"cluster.tasks_per_node={tasks}")
        assert resumed.returncode == 0, resumed.stderr
    until_finished(run)
    return run


def chain(runs: Runs) -> tuple[Run, Run]:
    """The second waits for data that is not there yet, the third for the second; each reports by itself."""
    root = runs.folder.with_name("chain")
    data = ("data.samples=[64,40]", f"data.root={root}", "epochs=1", "cluster.nodes=1")
    prepared = runs.cluster.submit("prepare.sbatch", "data=synthetic", "data.num_classes=4", "data.image_size=16",
                                   *data[:2], nodes=1, tasks=1, options=("--hold",))  # fmt: skip
    first = runs.submit(*data, options=("--after", prepared))
    second = runs.submit(*data, "seed=1", "report=true", options=("--after", job(first)))
    assert set(runs.sandbox.run("squeue", "-h", "-o", "%r", f"--jobs={job(first)},{job(second)}").split()) == {
        "Dependency"
    }
    runs.sandbox.run("scontrol", "release", prepared)
    until_finished(second)
    return first, second


def grid(runs: Runs) -> list[Run]:
    points = ("optim.lr=0.05,1e30", "seed=0,1", "epochs=2", "schedule=constant", "cluster.nodes=1")
    done = runs.command("submit", "--json", "-m", *runs.settings, *points)
    assert done.returncode == 0, done.stderr
    found = [Run.open(point["path"]) for point in json.loads(done.stdout)]
    for point in found:
        until(lambda point=point: rows(point, "stop"), point)
    return found


def exported_nothing(runs: Runs) -> tuple[Run, str, str]:
    """As at a centre that says so for all; and what a script's srun passes on there, as it is and with our line."""
    known = f"export SLURM_CONF={runs.sandbox.environment['SLURM_CONF']}"
    done = runs.command("submit", "--json", *runs.settings, "epochs=1", f"cluster.env_setup=['{known}']",
                        SBATCH_EXPORT="NONE")  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = Run.open(json.loads(done.stdout)["path"])
    passed_on = []
    for line in (":", "export SLURM_EXPORT_ENV=ALL"):
        script = f"{known}; export OURS=passed; {line}; srun printenv OURS || echo lost"
        options = ("--parsable", "--export=NONE", f"--output={runs.cluster.output}/%j.out")
        number = runs.sandbox.run("sbatch", *options, f"--wrap={script}").strip()
        runs.cluster.end(number)
        passed_on.append(runs.cluster.said(number).split()[-1])
    until_finished(run)
    return run, *passed_on


def submitted_twice(runs: Runs) -> tuple[Run, list[tuple[str, str, str]], subprocess.CompletedProcess[str]]:
    """Both jobs wait and are let go at once. The run goes on until it is cancelled: the loser never comes too late."""
    run = runs.create(*RARE, "epochs=100000", "cluster.nodes=1", "cluster.requeue=false")
    jobs = [runs.cluster.submit("train.sbatch", run.path, nodes=1, tasks=1, options=("--hold",)) for _ in range(2)]
    runs.sandbox.run("scontrol", "release", ",".join(jobs))
    until_learning(run)
    until(lambda: len(set(jobs) & set(runs.queue())) == 1, run)
    asked = runs.resume(run)
    until_learning(run, epochs=4)
    runs.sandbox.run("scancel", *jobs, check=False)
    ended = [(*runs.cluster.end(number), runs.cluster.said(number)) for number in jobs]
    return run, ended, asked


def edited_meanwhile(runs: Runs) -> tuple[Run, int]:
    """The checkout is broken while a job of it waits for its node."""
    checkout = runs.folder.with_name("checkout")
    for part in ("src", "cluster", "configs", "slurm"):
        shutil.copytree(ROOT / part, checkout / part, symlinks=True)
    blocker = runs.sandbox.run("sbatch", "--parsable", "--nodelist=node10", "--exclusive", "--output=/dev/null",
                               "--wrap", "sleep 600").strip()  # fmt: skip
    run = runs.submit("epochs=1", "cluster.nodes=1", "cluster.nodelist=node10", cwd=checkout)
    (checkout / "src/runyard/training/trainer.py").write_text("raise SystemExit(7)\n")
    (checkout / "configs/model/starter.yaml").write_text("nonsense\n")
    own = runs.sandbox.environment | {"PYTHONPATH": f"{checkout / 'src'}:{checkout}"}
    broken = subprocess.run([sys.executable, "-c", "import runyard.training.trainer"], cwd=checkout, env=own)
    runs.sandbox.run("scancel", blocker)
    until_finished(run)
    return run, broken.returncode


def plain_array(runs: Runs) -> tuple[list[Run], str]:
    made = runs.command("create", "-m", *runs.settings, "seed=0,1", "epochs=1", "cluster.nodes=1")
    assert made.returncode == 0, made.stderr
    listed = runs.folder.with_name("points.txt")
    listed.write_text(made.stdout)
    array = runs.cluster.submit("sweep.sbatch", listed, nodes=1, tasks=1, options=("--array=0-1",))
    points = [Run.open(line) for line in made.stdout.splitlines()]
    for point in points:
        until_finished(point)
    return points, array


KILLS = """#!/bin/sh
case $1 in --test-only) exec {sbatch} "$@" ;; esac
{sbatch} "$@" > /dev/null
kill -KILL $PPID
"""


def killed_after_sbatch(runs: Runs) -> tuple[Run, subprocess.CompletedProcess[str], subprocess.CompletedProcess[str]]:
    """The command dies before it hears of its job, which goes on without it."""
    kills = runs.folder.with_name("kills") / "sbatch"
    kills.parent.mkdir()
    path = runs.sandbox.environment["PATH"]
    kills.write_text(KILLS.format(sbatch=shutil.which("sbatch", path=path)))
    kills.chmod(0o755)
    name = "killed-after-sbatch"
    submitted = runs.command("submit", *runs.settings, *RARE, f"name={name}", PATH=f"{kills.parent}:{path}")
    (directory,) = runs.folder.glob(f"*-{name}-*")
    run = Run.open(directory)
    resumed = runs.resume(run)
    until_finished(run)
    return run, submitted, resumed


@pytest.fixture(scope="module")
def told(runs: Runs) -> Iterator[Callable[[Callable[[Runs], Any]], Any]]:
    stories = (
        other_sizes,
        chain,
        submitted_twice,
        grid,
        edited_meanwhile,
        plain_array,
        exported_nothing,
        killed_after_sbatch,
    )
    with at_once(runs, *stories) as told:
        yield told


def test_a_grid_is_one_array_and_a_point_that_fails_stops_no_other(told: Any) -> None:
    points = told(grid)
    assert len(points) == 4
    assert len({job(point).partition("_")[0] for point in points}) == 1, "one array"
    assert len({point.record["sweep"] for point in points}) == 1
    ended = {(p.config.optim.lr, p.config.seed): rows(p, "stop")[0]["reason"] for p in points}
    assert ended == {(0.05, 0): "finished", (0.05, 1): "finished", (1e30, 0): "failed", (1e30, 1): "failed"}
    assert [row for point in points for row in rows(point, "requeue")] == [], "what diverges would do so again"


def test_the_job_of_a_command_that_was_killed_as_it_came_on_the_queue_is_found_and_trains(told: Any) -> None:
    run, submitted, resumed = told(killed_after_sbatch)
    assert submitted.returncode == -signal.SIGKILL
    (noted,) = Run.open(run.path).record["jobs"]
    assert resumed.returncode == 2
    assert f"already (job {noted['id']})" in resumed.stderr
    assert [start["job_id"] for start in rows(run, "start")] == [noted["id"]], "one job, and at its first try"


def test_where_sbatch_exports_nothing_the_tasks_get_what_the_script_exports(told: Any) -> None:
    run, bare, ours = told(exported_nothing)
    assert (bare, ours) == ("lost", "passed")
    assert run.is_finished, said(run)


def test_prepare_then_train_then_train_again_is_a_chain(told: Any) -> None:
    first, second = told(chain)
    assert first.is_finished
    assert rows(first, "stop")[-1]["t"] < rows(second, "start")[0]["t"]
    until(lambda: (second.path / "report" / "index.html").exists(), second)


def test_of_two_jobs_of_one_run_let_go_at_once_one_trains_and_the_other_says_who(told: Any) -> None:
    run, ended, asked = told(submitted_twice)
    (state, code, told_why), (winner, _, _) = sorted(ended, key=lambda job: "is being written by" not in job[2])
    assert (state, code) == ("FAILED", "2:0")
    assert "is being written by" in told_why
    assert winner in ("CANCELLED", "FAILED"), "until it was cancelled it trained"
    assert (asked.returncode, len(asked.stderr.splitlines())) == (2, 1), "nor is what runs resumed"
    assert len(rows(run, "start")) == 1, said(run)
    assert len(rows(run, "stop")) <= 1, "the other wrote nothing"


def test_a_run_goes_on_with_another_number_of_tasks_and_says_so(told: Any) -> None:
    run = told(other_sizes)
    assert [row["world_size"] for row in rows(run, "start")] == [4, 1, 2]
    assert [row["message"].partition(":")[0] for row in rows(run, "warning")] == [
        "resuming with 1 ranks, before with 4", "resuming with 2 ranks, before with 1"]  # fmt: skip
    assert final_state(run)["step"] == 2 * STEPS


def test_a_waiting_job_trains_what_was_submitted_though_the_checkout_changes(told: Any) -> None:
    run, broken = told(edited_meanwhile)
    assert broken == 7, "the control"
    assert run.is_finished


def test_the_plain_array_script_trains_each_run_of_a_list(told: Any) -> None:
    points, array = told(plain_array)
    assert {row["job_id"] for point in points for row in rows(point, "start")} == {f"{array}_0", f"{array}_1"}


def settled(runs: Runs) -> list[str]:
    """The queue, once jobs of earlier tests that are ending have ended."""
    deadline = time.monotonic() + PATIENCE_S
    while runs.queue() and time.monotonic() < deadline:
        time.sleep(0.1)
    return runs.queue()


@pytest.mark.parametrize(("settings", "message"), [
    (("cluster.partition=nowhere",), "cluster.partition=nowhere"),
    (("cluster.account=nobody",), "cluster.account=nobody"),
    (("cluster.gpus_per_node=3", "cluster.tasks_per_node=3", "batch_size=36"), "3"),
    (("cluster.nodes=11", "batch_size=33"), "nodes=11"),
    (("cluster.timeout_min=2", "cluster.signal_delay_s=110"), "cluster.timeout_min=2"),
    (('cluster.comment="a\\nb"',), "cluster.comment"),
    (("cluster.account='la\"b'",), "cluster.account"),
])  # fmt: skip
def test_what_cannot_run_is_refused_before_anything_is_queued(
    runs: Runs, settings: tuple[str, ...], message: str
) -> None:
    before, there = settled(runs), sorted(runs.folder.iterdir())
    done = runs.command("submit", *runs.settings, *settings)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert message in done.stderr
    assert (runs.queue(), sorted(runs.folder.iterdir())) == (before, there)


def test_an_array_over_the_clusters_limit_is_refused(runs: Runs) -> None:
    before, there = settled(runs), sorted(runs.folder.iterdir())
    done = runs.command("submit", "-m", *runs.settings, f"seed={','.join(map(str, range(1002)))}")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "arrays hold at most 1001" in done.stderr
    assert (runs.queue(), sorted(runs.folder.iterdir())) == (before, there)
