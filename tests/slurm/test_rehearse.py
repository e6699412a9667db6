"""A rehearsal tells what each interruption cost, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.lab import Cluster
from tests.support.settings import PATIENCE_S, ROOT, SMALL
from tests.support.waiting import processes_of

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "runyard", "rehearse", "--json", "experiment=null", *SMALL, "cluster.nodes=2"]


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For all that a rehearsal writes. Its path is short: sockets lie in it."""
    return tmp_path_factory.mktemp("r")


def left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_run_interrupted_in_three_ways_ends_with_the_undisturbed_ones_weights(slurm: Cluster, folder: Path) -> None:
    done = subprocess.run(COMMAND, cwd=ROOT, env=os.environ | {"TMPDIR": str(folder)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["equal"]
    limit, killed, power = told["interruptions"]
    assert (limit["what"], limit["requeued_by"], limit["lost_steps"]) == ("time limit", "its script", 0)
    assert (killed["what"], killed["requeued_by"]) == ("rank 3 killed", "its script")
    assert (power["what"], power["requeued_by"]) == ("node without power", "SLURM")
    assert 0 < limit["resumed_at"] < killed["resumed_at"] < power["resumed_at"]
    assert left(folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_whatever_ends_a_rehearsal_nothing_is_left(slurm: Cluster, folder: Path, number: signal.Signals) -> None:
    own = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(COMMAND, cwd=ROOT, env=own, stderr=subprocess.PIPE, text=True) as rehearsal:
        assert rehearsal.stderr is not None
        assert "rehearsed: 2 nodes of 2 tasks" in rehearsal.stderr.readline()
        assert "is up after" in rehearsal.stderr.readline()
        assert processes_of(folder)
        rehearsal.send_signal(number)
        rehearsal.wait(PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and (left(folder) or processes_of(folder)):
        time.sleep(0.1)
    assert (left(folder), processes_of(folder)) == ([], {})


def test_another_cluster_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "cluster=nyu_torch"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "runyard: cluster=nyu_torch: a rehearsal has a temporary cluster of its own; leave that out\n"
    )
