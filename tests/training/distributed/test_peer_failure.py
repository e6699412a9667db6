"""What one rank fails of, or that it is gone or hangs, is what every rank learns."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from runyard.errors import UserError
from runyard.training.distributed import heartbeat, peer_failure, process_group
from runyard.training.distributed.launcher import RankInfo
from runyard.training.distributed.peer_failure import PeerFailure
from runyard.training.distributed.process_group import Consensus, joined_process_group
from tests.support.ranks import RANKS, Together, as_rank_that_prepares, place


def failing(rank_info: RankInfo) -> None:
    """The last rank alone finds a mistake; the others wait for it at the next exchange."""
    if rank_info.rank == RANKS - 1:
        raise UserError("data/test.beton: truncated")
    torch.distributed.all_reduce(torch.zeros(1))


def breaking(rank_info: RankInfo) -> None:
    if rank_info.rank == RANKS - 1:
        raise ArithmeticError("no number")
    torch.distributed.all_reduce(torch.zeros(1))


def dying(rank_info: RankInfo) -> None:
    if rank_info.rank == RANKS - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.all_reduce(torch.zeros(1))


def hanging(rank_info: RankInfo) -> None:
    process_group.JOIN_TIMEOUT_S = 1  # type: ignore[attr-defined]
    vote = Consensus(rank_info)
    if rank_info.rank == RANKS - 1:
        time.sleep(8)
        return
    vote.agree_now([0])


def hanging_where_one_looks_longer(rank_info: RankInfo) -> None:
    peer_failure.PEER_FAILURE_WAIT_S += rank_info.rank  # beyond the end of rank 0's own look, who has the store
    hanging(rank_info)


def stumbling(rank_info: RankInfo) -> Any:
    if rank_info.rank == RANKS - 1:
        raise UserError("data/test.beton: truncated")


@pytest.mark.slow
def test_what_one_rank_fails_of_is_what_every_rank_says(together: Together) -> None:
    for work, kind, own, message in (
        (failing, "UserError", "UserError", "data/test.beton: truncated"),
        (breaking, "PeerFailure", "ArithmeticError", "no number"),
    ):
        *others, last = together(work, RANKS)
        assert last == (own, message)
        assert others == [(kind, f"rank {RANKS - 1}: {message}")] * (RANKS - 1)


@pytest.mark.slow
def test_a_rank_that_cannot_get_ready_is_named_at_once(together: Together) -> None:
    *others, last = together(stumbling, RANKS, as_rank_that_prepares)
    assert last == ("UserError", "data/test.beton: truncated")
    assert others == [("UserError", f"rank {RANKS - 1}: data/test.beton: truncated")] * (RANKS - 1)


@pytest.mark.slow
def test_a_killed_rank_is_named_and_nobody_waits_for_it(together: Together) -> None:
    said = together(dying, RANKS - 1)
    assert {kind for kind, _ in said} == {"PeerFailure"}
    assert any(message.startswith(f"rank {RANKS - 1} of {RANKS} ended without a word") for _, message in said)


@pytest.mark.slow
@pytest.mark.parametrize("work", [hanging, hanging_where_one_looks_longer])
def test_a_rank_that_hangs_is_named_by_those_that_wait_for_its_vote(
    together: Together, work: Callable[[RankInfo], None]
) -> None:
    silent = f"ranks [{RANKS - 1}] of {RANKS} do not answer: look into their logs, on {socket.gethostname()}"
    assert together(work, RANKS - 1) == [("PeerFailure", silent)] * (RANKS - 1)


def test_what_gloo_fails_of_itself_is_told_in_its_own_words_and_no_lost_connection() -> None:
    store, notes = torch.distributed.HashStore(), Path("nowhere")
    own = RuntimeError("[enforce fail at /gloo/transport/tcp/device.cc:49] bind: Address already in use")
    assert not peer_failure.is_lost_connection(own)
    peer_failure.publish_failure(store, 1, own)
    lost = RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
    assert peer_failure.is_lost_connection(lost)
    assert peer_failure.is_lost_connection(RuntimeError("Application timeout caused pair closure"))  # gloo's, unnamed
    assert "Address already in use" in str(peer_failure.root_cause(store, [("elsewhere", 1)] * 2, 0, lost, notes))


STORE = """
import sys, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


def test_a_rank_does_not_wait_for_a_rank_0_that_is_held_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_failure, "STORE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(peer_failure, "PEER_FAILURE_WAIT_S", 0.2)
    before = set(threading.enumerate())
    with subprocess.Popen([sys.executable, "-c", STORE], stdin=-1, stdout=-1, text=True) as rank_0:
        assert rank_0.stdout is not None
        port = int(rank_0.stdout.readline())
        timeout = timedelta(seconds=0.5)
        stores = [torch.distributed.TCPStore("127.0.0.1", port, None, False, timeout, False) for _ in range(3)]
        rank_0.send_signal(signal.SIGSTOP)
        peer_failure.publish_failure(stores[0], 1, ValueError("its own"))
        lost = RuntimeError("Application timeout caused pair closure")
        said = peer_failure.root_cause(stores[1], [("node1", 1)] * 2, 1, lost, Path("nowhere"))
        assert str(said) == "rank 0 of 2 does not answer: look into its log, on node1"

        def control() -> None:  # has no limit
            with contextlib.suppress(RuntimeError):
                stores[2].check(["failed"])

        waits = threading.Thread(target=control, daemon=True)
        waits.start()
        waits.join(3)
        assert waits.is_alive()
        rank_0.kill()
    for thread in set(threading.enumerate()) - before:
        thread.join()


def test_a_rank_0_that_ended_on_another_node_is_named_and_its_store_asked_once(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with subprocess.Popen([sys.executable, "-c", STORE], stdin=-1, stdout=-1, text=True) as rank_0:
        assert rank_0.stdout is not None
        port = int(rank_0.stdout.readline())
        store = torch.distributed.TCPStore("127.0.0.1", port, None, False, timedelta(seconds=5), False)
        rank_0.kill()
    lost = RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [n1]:3")
    said = peer_failure.root_cause(store, [("node1", 1), (socket.gethostname(), os.getpid())], 1, lost, Path("nowhere"))
    assert str(said) == "rank 0 of 2 ended without a word: see its log, on node1"
    assert isinstance(said, peer_failure.PeerFailure)
    assert said.failure == {"rank": 0, "node": "node1"}
    assert capfd.readouterr().err.count("Exception raised from") <= 3, "torch prints its stack for each question"


def test_where_nobody_says_a_cause_what_was_met_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_failure, "PEER_FAILURE_WAIT_S", 0.2)
    store, places = torch.distributed.HashStore(), [("elsewhere", 1)] * 2
    for rank in (0, 1):
        store.set(f"waits/{rank}", "")
    for met, told in (
        (RuntimeError("[/gloo/pair.cc:534] Connection reset by peer [n1]:3"), "(Connection reset by peer [n1]:3)"),
        (torch.distributed.DistBackendError("NCCL error in: x.cpp\nsystem error\nLast error:\n socket: No route"),
         "(Last error: socket: No route)"),
    ):  # fmt: skip
        assert told in str(peer_failure.root_cause(store, places, 0, met, Path("nowhere")))


def test_a_silent_rank_is_named_with_the_line_that_it_stands_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_failure, "PEER_FAILURE_WAIT_S", 0.2)
    store, now = torch.distributed.HashStore(), time.time()
    store.set("waits/0", "")
    store.set("beat/1", json.dumps({"t": now, "since": now - 130, "at": "data/ffcv_reader.py:57 (read)"}))
    store.set("beat/2", json.dumps({"t": now - 90, "since": now - 95, "at": "training/loop.py:3"}))
    error = RuntimeError("gloo timed out")
    said = str(peer_failure.root_cause(store, [("elsewhere", 1)] * 3, 0, error, Path("nowhere")))
    assert "rank 1 has been at data/ffcv_reader.py:57 (read) for 130 s" in said
    assert "rank 2 has been silent for 90 s, stopped or cut off; it was at training/loop.py:3" in said


def test_a_heartbeat_says_where_the_main_thread_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL_S", 0.01)
    monkeypatch.setattr(heartbeat, "PACKAGE_ROOT", str(Path(__file__).parent) + "/")
    store = torch.distributed.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
    beating = heartbeat.Heartbeat(store, 3)
    store.wait(["beat/3"])
    assert heartbeat.describe_rank(store, 3).startswith("rank 3 has been at test_peer_failure.py:")
    assert heartbeat.describe_rank(store, 4) == ""
    beating.close()


def test_who_ended_before_the_ranks_met_is_known_to_those_that_wait_for_it(tmp_path: Path) -> None:
    (tmp_path / "ended-test.jsonl").write_text('{"rank": 2, "message": "was ended by SIGKILL"}\n')
    for rank in (0, 1):
        with (
            pytest.raises(PeerFailure, match="rank 2 was ended by SIGKILL"),
            joined_process_group(place(rank, 3), tmp_path),
        ):
            pytest.fail("it went on alone")
