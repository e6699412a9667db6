"""A person at the terminal sees what really goes on, follows it over a requeue, and ends it so that it stays ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from runyard.runs.run import Run
from tests.support.settings import PATIENCE_S, ROOT
from tests.support.slurm_runs import OFTEN, Runs, job, rows, said, saved_step, until

pytestmark = pytest.mark.slow
ENDLESS = ("epochs=100000", *OFTEN)


@pytest.fixture
def status(runs: Runs) -> Callable[[Run], dict[str, Any]]:
    def of(run: Run) -> dict[str, Any]:
        done = runs.command("status", "--json", str(run.path))
        assert done.returncode in (0, 1), done.stderr
        return dict(json.loads(done.stdout)[0])

    return of


def until_it_is(state: str, run: Run, status: Callable[[Run], dict[str, Any]]) -> dict[str, Any]:
    until(lambda: status(run)["state"] == state, run)
    return status(run)


def follow(runs: Runs, run: Run) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "runyard", "logs", "-f", str(run.path)]
    return subprocess.Popen(
        command, cwd=ROOT, env=runs.sandbox.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def restarts(runs: Runs, number: str) -> tuple[str, str]:
    """State of a job and how often SLURM started it again."""
    shown = dict(word.partition("=")[::2] for word in runs.sandbox.run("scontrol", "show", "job", number).split())
    return shown["JobState"], shown["Restarts"]


def test_a_run_is_seen_and_followed_over_a_requeue_and_cancelled_for_good(runs: Runs, status: Any) -> None:
    run = runs.submit(*ENDLESS)
    follower, leaver = follow(runs, run), follow(runs, run)
    running = until_it_is("running", run, status)
    assert running["message"].startswith("running on node")
    assert (len(running["nodelist"]), running["nodes"], running["slurm_state"]) == (2, 2, "RUNNING")
    until(lambda: len(rows(run, "checkpoint")) > 1, run)
    leaver.send_signal(signal.SIGINT)
    assert leaver.wait(PATIENCE_S) == 130
    assert status(run)["state"] == "running", "who leaves leaves the run alone"

    runs.sandbox.run("scontrol", "requeue", job(run))
    waiting = until_it_is("waiting", run, status)
    assert "waiting to go on at step" in waiting["message"]
    until(lambda: len(rows(run, "start")) == 2, run)
    assert until_it_is("running", run, status)["restarts"] == 1

    done = runs.command("cancel", "--json", str(run.path))
    ended = json.loads(done.stdout)
    assert (done.returncode, ended["state"], ended["forced"]) == (0, "interrupted", False), said(run)
    assert ended["step"] == saved_step(run) == rows(run, "checkpoint")[-1]["step"] > 0
    out, err = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 130
    marks = [line for line in out.splitlines() if line.startswith("── ")]
    assert [mark.partition(" on ")[0] for mark in marks] == [
        f"── start of job {job(run)}", f"── restart 1 of job {job(run)}"
    ]  # fmt: skip
    assert out.count("resuming at step") == 1
    assert "stopped at step" in err.splitlines()[-1]
    assert restarts(runs, job(run)) == ("FAILED", "1"), "ended, and not put back into the queue"
    assert runs.queue() == []
    assert runs.command("cancel", str(run.path)).returncode == 2


def test_what_waits_is_cancelled_before_it_begins(runs: Runs, status: Any) -> None:
    first = runs.sandbox.run("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap", "true").strip()
    run, other = (runs.submit(*ENDLESS, options=("--after", first)) for _ in range(2))
    for waiting in (status(run), status(other)):
        assert (waiting["state"], waiting["reason"]) == ("waiting", "Dependency")
        assert waiting["message"] == "waiting (Dependency): another job has to end first"
    done = runs.command("cancel", str(run.path))
    assert (done.returncode, "stopped before the first step" in done.stdout) == (0, True), done.stderr
    runs.sandbox.run("scancel", job(other))
    assert until_it_is("cancelled", other, status)["message"].startswith("cancelled (scancel) while it waited")
    runs.sandbox.run("scancel", first)
    until(lambda: runs.queue() == [], run)
    assert rows(run, "start") == rows(other, "start") == []


def test_a_run_that_is_starting_is_cancelled_too(runs: Runs, status: Any) -> None:
    """Its batch script runs and its tasks do not yet, or do not listen: what they are sent first is heard by nobody."""
    run = runs.submit(*ENDLESS)
    until_it_is("starting", run, status)
    assert rows(run, "start") == []
    done = runs.command("cancel", str(run.path))
    assert done.returncode == 0, done.stdout + done.stderr
    time.sleep(10)  # longer than a requeued job waits here
    assert runs.queue() == []
    assert restarts(runs, job(run))[0] in ("FAILED", "CANCELLED")
    assert status(run)["state"] == "interrupted"
