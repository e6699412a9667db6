"""Jobs in others' surroundings: another launcher's variables, set-up that fails, a site's own signal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from runyard.runs.run import Run
from tests.support.settings import PATIENCE_S, ROOT
from tests.support.slurm_runs import (
    RARE,
    Runs,
    at_once,
    job,
    rows,
    said,
    until,
    until_finished,
    until_learning,
    until_started,
)

pytestmark = pytest.mark.slow
OF_A_SHELL = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "nowhere"}


def foreign_variables(runs: Runs) -> Run:
    done = runs.command("submit", "--json", *runs.settings, *RARE, "cluster.nodelist='node[1-2]'", **OF_A_SHELL)
    assert done.returncode == 0, done.stderr
    run = Run.open(json.loads(done.stdout)["path"])
    until_finished(run)
    return run


def setup_that_fails(runs: Runs) -> tuple[Run, str]:
    run = runs.submit("cluster.env_setup=['exit 3']", "cluster.nodes=1")
    until(lambda: rows(run, "stop") and job(run) not in runs.queue(), run)
    return run, runs.command("status", str(run.path)).stdout


def preempted(runs: Runs) -> Run:
    run = runs.submit(*RARE, "cluster.nodelist='node[3-4]'")
    until_learning(run)
    runs.sandbox.run("scancel", "--signal=USR1", job(run))
    until_started(run, 2)
    runs.sandbox.run("scancel", job(run))
    return run


@pytest.fixture(scope="module")
def told(runs: Runs) -> Iterator[Callable[[Callable[[Runs], Any]], Any]]:
    with at_once(runs, preempted, foreign_variables, setup_that_fails) as told:
        yield told


def test_srun_is_believed_over_the_variables_that_somebody_left_in_the_shell(told: Any) -> None:
    (start,) = rows(told(foreign_variables), "start")
    assert (start["launcher"], start["world_size"], start["nodes"]) == ("SLURM", 2, 2)


def test_set_up_that_ends_the_script_is_said_by_status_and_not_repeated(told: Any) -> None:
    run, status = told(setup_that_fails)
    assert "failed: cluster.env_setup ended the job with exit code 3: exit 3" in status, said(run)
    assert [row["event"] for row in rows(run)] == ["stop"]


def test_a_stop_by_usr1_is_a_preemption(told: Any) -> None:
    run = told(preempted)
    assert [row["cause"] for row in rows(run, "requeue")] == ["preemption"], said(run)


def test_a_command_in_the_terminal_of_a_step_is_told_how_to_start_its_tasks(runs: Runs) -> None:
    run = runs.create(*RARE)
    typed = f"{sys.executable} -m runyard train {run.path}\nexit\n"
    terminal = ["script", "--quiet", "--return", "--command", "srun -n2 -N2 --pty bash", "/dev/null"]
    environment = runs.sandbox.environment | {"PYTHONPATH": f"{ROOT / 'src'}"}
    done = subprocess.run(
        terminal, input=typed, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert "SLURM_NTASKS=2: this is the shell of step 0, and not one of 2 tasks" in " ".join(done.stdout.split())
