"""Ranks find their place and each other, and let go of each other at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.runs import journal
from runyard.runs.run import Run
from runyard.training.distributed import process_group
from runyard.training.distributed.launcher import RankInfo, from_environment
from runyard.training.distributed.peer_failure import PeerFailure
from runyard.training.distributed.process_group import joined_process_group
from tests.support.ranks import RANKS, Together, as_rank_that_prepares, place
from tests.support.trainings import Ranks

SUBMITIT = {
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_LOCALID": "1",
    "SUBMITIT_LOCAL_JOB_ID": "4711",
}


def test_who_does_not_come_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "JOIN_TIMEOUT_S", 0.3)
    with (
        pytest.raises(PeerFailure, match=r"ranks \[1, 2\] of 3 did not come"),
        joined_process_group(place(0, 3), tmp_path),
    ):
        pytest.fail("it went on alone")
    assert not list(tmp_path.iterdir()), "a later job could find this address"
    with pytest.raises(PeerFailure, match="rank 0 opened no rendezvous"), joined_process_group(place(1, 3), tmp_path):
        pytest.fail("it went on alone")


def test_a_rank_0_that_is_reached_at_none_of_its_addresses_may_be_so_at_another_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_group, "JOIN_TIMEOUT_S", 0.3)
    there = {"hosts": ["127.0.0.1"], "port": 1, "secret": "s"}
    (tmp_path / "rendezvous-test.json").write_text(json.dumps(there))
    with (
        pytest.raises(PeerFailure, match=r"rank 0 is reached at none of 127\.0\.0\.1, port 1"),
        joined_process_group(place(1, 3), tmp_path),
    ):
        pytest.fail("it went on alone")


def preparing(rank_info: RankInfo) -> Any:
    """The last rank needs longer for what comes first than the group would wait."""
    if rank_info.rank == RANKS - 1:
        time.sleep(6)
    return rank_info.rank


@pytest.mark.slow
def test_what_comes_first_may_take_a_rank_longer_than_the_group_waits(together: Together) -> None:
    assert together(preparing, RANKS, as_rank_that_prepares) == list(range(RANKS))


def test_an_address_of_an_earlier_start_under_the_same_number_is_not_this_ones() -> None:
    earlier, now = (from_environment(SUBMITIT | {"RUNYARD_START": start}).start_id for start in ("a1", "b2"))
    assert earlier.startswith("4711")
    assert earlier != now


ENDING = """
import atexit, os, pathlib, sys
@atexit.register  # before runyard's own, so that it is called after them
def threads():
    print(*(p.read_text().strip() for p in pathlib.Path("/proc/self/task").glob("*/comm")), file=sys.stderr)
from runyard.training.distributed import process_group
if sys.argv[2] == "unmended":
    atexit.unregister(process_group._join_gloo_threads)
from runyard.cli.main import main
sys.exit(main(["train", sys.argv[1]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("end", "left"), [("mended", False), ("unmended", True)])
def test_no_thread_of_gloo_outlives_the_interpreter_and_aborts_a_rank_that_trained_well(
    make_run: Callable[..., Run], end: str, left: bool
) -> None:
    run = make_run("epochs=1")
    ranks = Ranks(run, 2, "first", command=[sys.executable, "-c", ENDING, str(run.path), end])
    ranks.wait()  # the unmended one may abort
    assert [said.count("pt_gloo_runloop") > 0 for said in ranks.errors] == [left, left], ranks.errors


@pytest.mark.slow
def test_torchrun_trains_a_run(make_run: Callable[..., Run]) -> None:
    run = make_run("epochs=1")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "runyard",
        "train",
        str(run.path),
    ]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows, _ = journal.read_journal(run.journal_path)
    assert (rows[0]["launcher"], rows[0]["world_size"]) == ("torchrun", 2)
    assert (rows[-1]["event"], rows[-1]["reason"]) == ("stop", "finished")
