"""One command puts runs on the queue: arrays, chains, the same run twice, another size; and refuses what cannot run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runyard.run import Run
from tests.slurm.conftest import ROOT, Cluster
from tests.slurm.runs import OFTEN, STEPS, Runs, job, rows, said, until, until_finished, until_learning
from tests.training.conftest import final_state

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(slurm: Cluster, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(slurm.lab, data_root, tmp_path_factory.mktemp("runs"))


def test_a_grid_is_one_array_and_a_point_that_fails_stops_no_other(runs: Runs) -> None:
    grid = ("optim.lr=0.05,1e30", "seed=0,1", "epochs=2", "schedule=constant", "cluster.nodes=1")
    before = set(runs.folder.iterdir())
    done = runs.command("submit", "-m", *runs.settings, *grid)
    assert done.returncode == 0, done.stderr
    points = [Run.open(path) for path in sorted(set(runs.folder.iterdir()) - before) if path.name[0] != "."]
    assert len(points) == 4
    assert len({job(point).partition("_")[0] for point in points}) == 1, "one array"
    assert len({point.record["sweep"] for point in points}) == 1
    for point in points:
        until(lambda point=point: rows(point, "stop"), point)
    ended = {(p.config.optim.lr, p.config.seed): rows(p, "stop")[0]["reason"] for p in points}
    assert ended == {(0.05, 0): "finished", (0.05, 1): "finished", (1e30, 0): "failed", (1e30, 1): "failed"}
    assert [row for point in points for row in rows(point, "requeue")] == [], "what diverges would do so again"


def test_prepare_then_train_then_train_again_is_a_chain(runs: Runs, slurm: Cluster, tmp_path: Path) -> None:
    """The second waits for data that is not there yet, the third for the second; each reports by itself."""
    data = ("data.samples=[64,40]", f"data.root={tmp_path}", "epochs=1", "cluster.nodes=1")
    prepared = slurm.submit("prepare.sbatch", "data=synthetic", "data.num_classes=4", "data.image_size=16", *data[:2],
                            nodes=1, tasks=1, options=("--hold",))  # fmt: skip
    first = runs.submit(*data, options=("--after", prepared))
    second = runs.submit(*data, "seed=1", options=("--after", job(first)))
    assert set(runs.lab.run("squeue", "-h", "-o", "%r", f"--jobs={job(first)},{job(second)}").split()) == {"Dependency"}
    runs.lab.run("scontrol", "release", prepared)
    until_finished(second)
    assert first.finished
    assert rows(first, "stop")[-1]["t"] < rows(second, "start")[0]["t"]
    until(lambda: (second.path / "report" / "index.html").exists(), second)


def test_two_jobs_of_one_run_never_write_at_once(runs: Runs, slurm: Cluster) -> None:
    run = runs.submit(*OFTEN, "cluster.nodes=1")
    until_learning(run, 1)
    second = slurm.submit("train.sbatch", run.path, nodes=1, tasks=1, options=("--no-requeue",))
    state, code = slurm.end(second)
    assert (state, code) == ("FAILED", "2:0"), slurm.said(second)
    assert "is being written by" in slurm.said(second)
    refused = runs.resume(run)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    until_finished(run)
    assert len(rows(run, "start")) == 1, said(run)


def test_a_run_goes_on_with_another_number_of_tasks_and_says_so(runs: Runs) -> None:
    run = runs.submit(*OFTEN, "cluster.tasks_per_node=2")
    sizes = (("cluster.nodes=1", "cluster.tasks_per_node=1"), ("cluster.nodes=2", "cluster.tasks_per_node=1"))
    for start, size in enumerate(sizes, 1):
        until(lambda start=start: len(rows(run, "start")) == start, run)
        until_learning(run, 3 * start)
        runs.lab.run("scancel", job(run))
        until(lambda start=start: len(rows(run, "stop")) == start, run)
        until(lambda: job(run) not in runs.queue(), run)
        resumed = runs.resume(run, *size)
        assert resumed.returncode == 0, resumed.stderr
    until_finished(run)
    assert [row["world_size"] for row in rows(run, "start")] == [4, 1, 2]
    assert [row["message"].partition(":")[0] for row in rows(run, "warning")] == [
        "going on with 1 ranks, before with 4", "going on with 2 ranks, before with 1"]  # fmt: skip
    assert final_state(run)["step"] == STEPS


def test_a_waiting_job_trains_what_was_submitted_though_the_checkout_changes(runs: Runs, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for part in ("src", "cluster", "configs", "slurm"):
        shutil.copytree(ROOT / part, checkout / part)
    blocker = runs.lab.run("sbatch", "--parsable", "--nodes=3", "--exclusive", "--output=/dev/null",
                           "--wrap", "sleep 600").strip()  # fmt: skip
    run = runs.submit("epochs=1", "cluster.nodes=1", cwd=checkout)
    (checkout / "src/runyard/training/loop.py").write_text("raise SystemExit(7)\n")
    (checkout / "configs/model/starter.yaml").write_text("nonsense\n")
    own = runs.lab.environment | {"PYTHONPATH": f"{checkout / 'src'}:{checkout}"}
    broken = subprocess.run([sys.executable, "-c", "import runyard.training.loop"], cwd=checkout, env=own)
    assert broken.returncode == 7, "the control"
    runs.lab.run("scancel", blocker)
    until_finished(run)


def test_the_plain_array_script_trains_each_run_of_a_list(runs: Runs, slurm: Cluster, tmp_path: Path) -> None:
    made = runs.command("create", "-m", *runs.settings, "seed=0,1", "epochs=1", "cluster.nodes=1")
    assert made.returncode == 0, made.stderr
    (tmp_path / "points.txt").write_text(made.stdout)
    array = slurm.submit("sweep.sbatch", tmp_path / "points.txt", nodes=1, tasks=1, options=("--array=0-1",))
    points = [Run.open(line) for line in made.stdout.splitlines()]
    for point in points:
        until_finished(point)
    assert {row["job_id"] for point in points for row in rows(point, "start")} == {f"{array}_0", f"{array}_1"}


def settled(runs: Runs) -> list[str]:
    """The queue, once jobs of earlier tests that are ending have ended."""
    deadline = time.monotonic() + 60
    while runs.queue() and time.monotonic() < deadline:
        time.sleep(0.1)
    return runs.queue()


@pytest.mark.parametrize(("settings", "message"), [
    (("cluster.partition=nowhere",), "cluster.partition=nowhere"),
    (("cluster.account=nobody",), "cluster.account=nobody"),
    (("cluster.gpus_per_node=3", "cluster.tasks_per_node=3", "batch_size=36"), "3"),
    (("cluster.nodes=9", "batch_size=36"), "nodes=9"),
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
