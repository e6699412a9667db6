"""Several small runs share one job on a real SLURM, and each has its own log, end and status."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from pathlib import Path

import pytest

from runyard.runs import lease
from runyard.runs.run import Run
from tests.support.slurm_runs import (
    RARE,
    Runs,
    job,
    rows,
    said,
    until,
    until_finished,
    until_learning,
)
from tests.support.trainings import final_state, same

pytestmark = pytest.mark.slow  # it trains on a real SLURM

SETTINGS = (*RARE, "cluster.nodes=1", "schedule=constant")
SHORT = "epochs=30"


def status(runs: Runs, run: Run) -> tuple[str, str]:
    (shown,) = json.loads(runs.command("status", "--json", str(run.path)).stdout)
    return shown["state"], shown["message"]


def send(run: Run, number: signal.Signals) -> None:
    """To the process that trains the run: each node has process ids of its own, so its lease names another one."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.path.samefile(link, run.path / lease.LEASE_FILE) for link in (process / "fd").iterdir()):
                os.kill(int(process.name), number)


def test_runs_that_share_a_job_end_each_by_itself_and_what_is_left_goes_on_to_the_same_bits(runs: Runs) -> None:
    points = ("epochs=30,100000", "optim.lr=0.05,1e30", "cluster.runs_per_task=3")
    done = runs.command("submit", "--json", "-m", *runs.settings, *SETTINGS, *points)
    assert done.returncode == 0, done.stderr
    short, broken, long, apart = packed = [Run.open(point["path"]) for point in json.loads(done.stdout)]
    number = job(short)
    assert [job(run) for run in packed] == [number] * 3 + [number.replace("_0", "_1")]
    until_learning(short)
    send(short, signal.SIGSTOP)  # so that it is still on its way whatever happens beside it
    until_learning(long)

    until(lambda: rows(broken, "stop"), broken)
    state, message = status(runs, broken)
    assert (state, rows(broken, "stop")[0]["retry"]) == ("failed", False), message
    assert [status(runs, run)[0] for run in (short, long)] == ["running", "running"], said(short)
    assert number in runs.queue()

    cancelled = runs.command("cancel", str(long.path))
    assert cancelled.returncode == 0, cancelled.stderr
    assert status(runs, long)[0] == "interrupted"
    resumed = runs.resume(long)  # it takes a job of its own, beside the one that it has left
    assert resumed.returncode == 0, resumed.stderr
    until_learning(long, start=2)
    assert [status(runs, run)[0] for run in (short, long)] == ["running", "running"]
    assert runs.command("cancel", str(long.path)).returncode == 0

    runs.sandbox.run("scancel", "--signal=USR2", number)  # as before the time limit
    send(short, signal.SIGCONT)
    until_finished(short)
    first, second = rows(short, "start")
    assert (first["job_id"], second["job_id"]) == (number, number)
    assert second["step"] > 0, "it was to be stopped on its way"
    until(lambda: number not in runs.queue(), short)
    assert [len(rows(run, "start")) for run in (broken, long, apart)] == [1, 2, 1]
    assert [[row["cause"] for row in rows(run, "requeue")] for run in packed] == [["time limit"], [], [], []]
    assert [status(runs, run)[0] for run in packed] == ["finished", "failed", "interrupted", "failed"]

    whole = runs.submit(*SETTINGS, SHORT, "optim.lr=0.05")
    until_finished(whole)
    assert same(final_state(whole), final_state(short))

    logs = {run.id: runs.command("logs", str(run.path)).stdout for run in packed[:3]}
    assert all(text.startswith(f"── start of job {number} on ") for text in logs.values())
    assert "time limit: back into the queue, to go on at step" in logs[short.id]
    assert "this run is over, or has another job" in logs[broken.id]
    assert not any(run.id in logs[other.id] for run in packed for other in packed[:3] if run is not other)

    # The control: without the options of the script's srun, a task's bad end is that of its neighbours.
    (script,) = Path(short.path, Run.open(short.path).record["jobs"][0]["logs"]).glob("submission_*.sh")
    options = re.findall(r"--kill-on-bad-exit=0|--wait=0", script.read_text())
    assert options == ["--kill-on-bad-exit=0", "--wait=0"]
    tasks = ("--ntasks=2", "--nodes=1", "bash", "-c", "[ $SLURM_PROCID = 0 ] && exit 1; sleep 2; echo went on")
    assert "went on" in runs.sandbox.run("srun", *options, *tasks, check=False)
    assert "went on" not in runs.sandbox.run("srun", "--kill-on-bad-exit=1", *tasks, check=False)
