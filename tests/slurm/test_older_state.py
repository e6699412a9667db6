"""A controller that was killed comes back from what it saved last, which may be older than a job's start."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.support.lab import cluster_of
from tests.support.slurm_runs import Runs, job, rows, said, until

pytestmark = pytest.mark.slow


def test_a_job_whose_start_the_controller_has_forgotten_starts_anew_and_finishes(
    data_root: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without waiting for the controller to end it, SLURM 22.05 held the job: "launch failed requeued held"."""
    gate = tmp_path / "gate"
    with cluster_of(1, tmp_path_factory.mktemp("older")) as cluster:
        sandbox, runs = cluster.sandbox, Runs(cluster, data_root, tmp_path / "runs")
        sandbox.run("scontrol", "update", "NodeName=node1", "State=DRAIN", "Reason=later")
        waits = json.dumps([f"until [ -e {gate} ]; do sleep 0.2; done"])
        run = runs.submit("epochs=1", "cluster.nodes=1", f"cluster.env_setup={waits}")
        state, older = sandbox.folder / "state", sandbox.folder / "older"
        saved = {"node_state": b"later", "job_state": run.id.encode()}  # within some seconds
        for name, text in saved.items():
            until(lambda: text in b"".join(path.read_bytes() for path in state.glob(name)), run)  # noqa: B023
        shutil.copytree(state, older)
        sandbox.run("scontrol", "update", "NodeName=node1", "State=RESUME")
        until(lambda: sandbox.run("squeue", "--noheader", "--states=R", f"--jobs={job(run)}"), run)
        sandbox.kill_controller()
        shutil.rmtree(state)
        older.rename(state)
        gate.touch()
        sandbox.start_controller()
        assert "State=RUNNING" not in sandbox.run("scontrol", "show", "job", job(run)), "it was to forget the start"
        log = sandbox.folder / "log" / "slurmctld.log"
        until(lambda: "Registered PENDING" in log.read_text(), run)
        time.sleep(3)  # SLURM fails a job that it starts in the second in which it ended the forgotten start

        def finished() -> bool:
            sandbox.restore()  # the drain, which it remembers; and a node that registers late, on a busy machine
            return run.is_finished

        until(finished, run)
        assert (len(rows(run, "start")), rows(run, "requeue"), rows(run, "warning")) == (1, [], []), said(run)
