"""Ranks find their place and each other, agree on what to do, count together exactly, and learn of each other's end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
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

import numpy as np
import pytest
import torch

from runyard.data.loading.batch import Batch
from runyard.data.sampler import evaluation_indices
from runyard.errors import UserError
from runyard.runs import journal
from runyard.runs.run import Run
from runyard.training.distributed import heartbeat, peer_failure, process_group
from runyard.training.distributed.peer_failure import PeerFailure
from runyard.training.distributed.process_group import Consensus, RankInfo, from_environment, joined_process_group
from runyard.training.evaluation import SplitEvaluation
from runyard.training.metrics.counters import Counters
from runyard.training.metrics.system_metrics import SystemMetrics
from runyard.training.stop_signals import StopReason, TrainingStopped
from tests.support.settings import PATIENCE_S
from tests.support.trainings import Ranks

SUBMITIT = {
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_LOCALID": "1",
    "SUBMITIT_LOCAL_JOB_ID": "4711",
}
TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "TORCHELASTIC_RUN_ID": "abc",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29400",
}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "99",
    "SLURM_RESTART_COUNT": "2",
}
RANKS, IMAGES, CLASSES = 3, 100, 4


@pytest.mark.parametrize(
    ("env", "rank_info"),
    [
        (SUBMITIT, RankInfo(1, 2, 1, 2, "submitit, local", "4711")),
        (TORCHRUN, RankInfo(5, 8, 1, 4, "torchrun", "abc")),
        (SLURM, RankInfo(3, 4, 1, 2, "SLURM", "99-2-0")),
        (SLURM | SUBMITIT, RankInfo(1, 2, 1, 2, "submitit, local", "4711")),
        ({n: v for n, v in SLURM.items() if n != "SLURM_STEP_ID"}, RankInfo(0, 1, 0, 1, "none", str(os.getpid()))),
        (SLURM | {"SLURM_STEP_ID": "4294967290"}, RankInfo(0, 1, 0, 1, "none", str(os.getpid()))),
        (SLURM | {"WORLD_SIZE": "4", "MASTER_ADDR": "node1"}, RankInfo(3, 4, 1, 2, "SLURM", "99-2-0")),
        (
            {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
            RankInfo(0, 1, 0, 1, "torchrun", "alone"),
        ),
        ({}, RankInfo(0, 1, 0, 1, "none", str(os.getpid()))),
    ],
    ids=[
        "submitit",
        "torchrun",
        "srun",
        "submitit within SLURM",
        "a batch script without srun",
        "salloc's shell",
        "srun in a script that exports torchrun's",
        "a torchrun of one",
        "nothing",
    ],
)
def test_each_launcher_says_who_i_am(env: dict[str, str], rank_info: RankInfo) -> None:
    assert from_environment(env) == rank_info


@pytest.mark.parametrize(
    ("env", "bound", "threads"),
    [
        (SLURM, 4, 4),  # srun bound it: they are its own
        (SLURM, 16, 8),  # nobody did: shared with the task beside it
        (SLURM | {"SLURM_CPUS_PER_TASK": "3"}, 4, 3),  # bound to the job's, of which it was given a part
        (SLURM | {"SLURM_CPUS_PER_TASK": "3"}, 16, 3),
        (SLURM | {"SLURM_CPUS_PER_TASK": "3"} | SUBMITIT, 16, 8),  # a local run in a job shares the machine's
        (TORCHRUN, 16, 4),
        (TORCHRUN, 2, 1),
    ],
)
def test_a_task_computes_on_the_cpus_that_are_its_own(
    env: dict[str, str], bound: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)))
    assert from_environment(env).threads == threads


@pytest.mark.parametrize(
    ("env", "missing"),
    [
        (SUBMITIT, "SUBMITIT_LOCAL_NTASKS"),
        (SUBMITIT, "SUBMITIT_LOCAL_GLOBALID"),
        (TORCHRUN, "LOCAL_RANK"),
        (TORCHRUN, "LOCAL_WORLD_SIZE"),
        (TORCHRUN, "RANK"),
        (TORCHRUN, "MASTER_ADDR"),
        (TORCHRUN, "MASTER_PORT"),
        (SLURM, "SLURM_LOCALID"),
        (SLURM, "SLURM_PROCID"),
    ],
)
def test_an_environment_set_in_part_is_refused_by_the_name_of_what_is_missing(
    env: dict[str, str], missing: str
) -> None:
    with pytest.raises(UserError, match=f"{missing}.* is not"):
        from_environment({n: v for n, v in env.items() if n != missing})


@pytest.mark.parametrize(("name", "value"), [("RANK", "eight"), ("RANK", "8"), ("RANK", "-1"), ("WORLD_SIZE", "")])
def test_a_rank_that_is_none_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(UserError, match=name):
        from_environment(TORCHRUN | {name: value})


def place(rank: int, world_size: int, job: str = "test") -> RankInfo:
    return RankInfo(rank, world_size, rank, world_size, "submitit, local", job)


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


def test_a_world_of_one_joins_nothing_and_agrees_with_itself_a_step_later(tmp_path: Path) -> None:
    with joined_process_group(place(0, 1), tmp_path):
        assert not torch.distributed.is_initialized()
        vote = Consensus(place(0, 1))
        assert [vote.exchange([n, 0]) for n in (0, 3, 1)] == [[0, 0], [0, 0], [3, 0]]
        assert vote.agree_now([0, 2]) == [1, 2]
        assert vote.wait_pending() is None


def voting(rank_info: RankInfo) -> list[Any]:
    """Rank r raises flag 1 at step r, and flag 2 as high as its rank at step 0."""
    vote = Consensus(rank_info)
    answers = [vote.exchange([int(step == rank_info.rank), rank_info.rank * (step == 0)]) for step in range(5)]
    return [*answers, vote.agree_now([0, rank_info.rank])]


def logits_of(images: torch.Tensor) -> torch.Tensor:
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=(12, CLASSES))).float()
    return images.reshape(len(images), 12).float() / 50 @ weights


def measuring(rank_info: RankInfo) -> Any:
    """Loss, top-1 and predictions over 100 images of which each rank sees its share, in small batches."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, size=(IMAGES, 2, 2, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, CLASSES, size=IMAGES))
    mine = torch.from_numpy(np.asarray(evaluation_indices(IMAGES, rank_info.rank, rank_info.world_size)))
    batches = [Batch(images[part], labels[part], part) for part in mine.split(7)]
    part = SplitEvaluation(IMAGES, rank_info.world_size, 7)
    assert len(list(part.evaluate_batches(logits_of, batches, 0.1))) == {1: 15, RANKS: 5}[rank_info.world_size], (
        "on each rank"
    )
    assert part.is_complete
    p = part.predictions()
    return p.loss, p.top1, p.confusion(CLASSES), p.index.tolist(), p.predicted.tolist(), p.confidence.tolist()


def counting(rank_info: RankInfo, *, restoring: int = 1) -> list[float | None]:
    """A count that is saved on its way by rank 0 and goes on from what was saved, there and on ``restoring`` in all."""
    counters = Counters(torch.device("cpu"))

    def step(loss: float, correct: int, norm: float) -> None:
        counters.add(torch.tensor(loss), torch.tensor(correct), 10)
        if rank_info.rank == 0:
            counters.add_norm(torch.tensor(norm))

    step(float(rank_info.rank + 1), rank_info.rank, 5.0)
    counters.gather()
    saved = [counters.state().clone()]
    torch.distributed.broadcast_object_list(saved)
    counters.reset()
    if rank_info.rank < restoring:
        counters.restore(saved[0])
    step(4.0, 2, 2.0)
    step(4.0, 2, 2.0)
    return list(counters.mean())


def counting_everywhere(rank_info: RankInfo) -> list[float | None]:
    return counting(rank_info, restoring=RANKS)


def using(rank_info: RankInfo) -> Any:
    """Two nodes, of which the first has all ranks but the last."""
    last = rank_info.rank == RANKS - 1
    os.environ["SLURMD_NODENAME"] = "node2" if last else "node1"
    usage = SystemMetrics(
        dataclasses.replace(rank_info, local_rank=0 if last else rank_info.rank), all_nodes=True, warn=pytest.fail
    )
    usage.start()
    return usage.read()


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


def preparing(rank_info: RankInfo) -> Any:
    """The last rank needs longer for what comes first than the group would wait."""
    if rank_info.rank == RANKS - 1:
        time.sleep(6)
    return rank_info.rank


def stumbling(rank_info: RankInfo) -> Any:
    if rank_info.rank == RANKS - 1:
        raise UserError("data/test.beton: truncated")


def as_rank_that_prepares(rank: int, folder: Path, work: Callable[[RankInfo], Any], said: Any) -> None:
    process_group.JOIN_TIMEOUT_S = 4
    me = place(rank, RANKS)
    try:
        with joined_process_group(me, folder, lambda: work(me)) as prepared:
            said.put((rank, prepared))
    except BaseException as error:
        said.put((rank, (type(error).__name__, str(error))))


def as_rank(rank: int, folder: Path, work: Callable[[RankInfo], Any], said: Any) -> None:
    process_group.JOIN_TIMEOUT_S = 10 * PATIENCE_S  # nobody may wait for that when a rank is lost
    me = place(rank, RANKS)
    try:
        with joined_process_group(me, folder):
            said.put((rank, work(me)))
    except Exception as error:
        said.put((rank, (type(error).__name__, str(error))))


Together = Callable[..., list[Any]]


@pytest.fixture
def together(tmp_path: Path) -> Together:
    """``together(work, 3)``: what ``work`` gives, or raises, on each of three ranks, of which so many have a say."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", __name__])

    def run(work: Callable[[RankInfo], Any], speakers: int, begin: Callable[..., None] = as_rank) -> list[Any]:
        said = context.Queue()
        ranks = [context.Process(target=begin, args=(r, tmp_path, work, said)) for r in range(RANKS)]
        for process in ranks:
            process.start()
        if speakers < RANKS:
            ranks[-1].join(PATIENCE_S)  # reaped at once, as a launcher does
        answers = sorted(said.get(timeout=PATIENCE_S) for _ in range(speakers))
        for process in ranks:
            process.join(PATIENCE_S)
        return [answer for _, answer in answers]

    return run


@pytest.mark.slow
def test_every_rank_reads_the_highest_flag_of_any_one_step_later(together: Together) -> None:
    wanted = [[0, 0], [1, RANKS - 1], [1, 0], [1, 0], [0, 0], [0, RANKS - 1]]
    assert together(voting, RANKS) == [wanted] * RANKS


@pytest.mark.slow
def test_three_ranks_measure_what_one_does_with_each_image_once(together: Together) -> None:
    loss, top1, confusion, index, predicted, confidence = measuring(place(0, 1))
    ranks = together(measuring, RANKS)
    assert [r[0] for r in ranks] == pytest.approx([loss] * RANKS, rel=1e-6)  # a batch is summed in float32
    assert [r[1] for r in ranks] == [top1] * RANKS
    assert ranks[0][2:5] == (confusion, index, predicted)
    assert ranks[0][5] == pytest.approx(confidence, rel=1e-6)
    assert index == list(range(IMAGES))
    assert np.sum(confusion) == IMAGES
    assert 0 < np.trace(confusion) < IMAGES


@pytest.mark.slow
def test_counters_saved_by_rank_0_count_each_image_once(together: Together) -> None:
    loss, top1, grad_norm = (1 + 2 + 3 + 6 * 4) / 90, (0 + 1 + 2 + 6 * 2) / 90, (5 + 2 + 2) / 3
    assert together(counting, RANKS) == [pytest.approx([loss, top1, grad_norm])] * RANKS


@pytest.mark.slow
def test_counters_restored_on_every_rank_would_count_what_was_saved_again(together: Together) -> None:
    for loss, _, grad_norm in together(counting_everywhere, RANKS):
        assert loss == pytest.approx((3 * (1 + 2 + 3) + 6 * 4) / 150)
        assert grad_norm == pytest.approx((3 * 5 + 2 + 2) / 5)


@pytest.mark.slow
def test_rank_0_hears_of_every_node_once(together: Together) -> None:
    first, *others = together(using, RANKS)
    assert [node["node"] for node in first["nodes"]] == ["node1", "node2"]
    assert all(node["memory_mb"] > 0 for node in first["nodes"])
    assert others == [{"gpu_util_pct": None, "nodes": []}] * (RANKS - 1)


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
def test_what_comes_first_may_take_a_rank_longer_than_the_group_waits(together: Together) -> None:
    assert together(preparing, RANKS, as_rank_that_prepares) == list(range(RANKS))


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
    assert heartbeat.describe_rank(store, 3).startswith("rank 3 has been at test_distributed.py:")
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


def test_an_address_of_an_earlier_start_under_the_same_number_is_not_this_ones() -> None:
    earlier, now = (from_environment(SUBMITIT | {"RUNYARD_START": start}).start_id for start in ("a1", "b2"))
    assert earlier.startswith("4711")
    assert earlier != now


def stopping_before_it_begins(rank_info: RankInfo) -> None:
    """Rank 0 alone is asked to stop while the others get ready."""
    if rank_info.rank == 0:
        raise TrainingStopped(StopReason.TERM)


@pytest.mark.slow
def test_one_ranks_stop_before_training_is_every_ranks(together: Together) -> None:
    assert (
        together(stopping_before_it_begins, RANKS, as_rank_that_prepares)
        == [("TrainingStopped", "asked to stop (TERM)")] * RANKS
    )


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
