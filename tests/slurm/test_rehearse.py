"""A rehearsal leaves nothing behind however it ends; tests/package/test_wheel.py has one that ends well."""

from __future__ import annotations

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
