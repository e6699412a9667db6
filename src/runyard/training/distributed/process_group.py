"""The rendezvous that forms the process group, and what the ranks agree on within it."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import gc
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # DDP would import it within a group, and its defaults would keep that forever

from runyard.training.distributed import peer_failure, rendezvous
from runyard.training.distributed.heartbeat import Heartbeat
from runyard.training.distributed.launcher import RankInfo
from runyard.training.stop_signals import StopReason, interruptible

JOIN_TIMEOUT_S = 120.0
STORE_POLL_S = 0.05
STORE_LINGER_S = 10 * STORE_POLL_S  # time for the other ranks to read the store
READY_TIMEOUT_S = 3600.0  # copying data to a node and compiling may take long
_groups: list[object] = []  # their threads are waited for at the end of the process


@contextlib.contextmanager
def joined_process_group(
    rank_info: RankInfo,
    rendezvous_dir: Path,
    prepare: Callable[[], object] = lambda: None,
    get_stop_reason: Callable[[], StopReason] = lambda: StopReason.NO,
    *,
    compiles: bool = False,
) -> Iterator[Any]:
    """Within the block this task belongs to the process group: NCCL on GPUs, else gloo. A single task joins none.

    Rank 0 opens a store on a free port and writes its address into ``rendezvous_dir``, which all ranks can read. Under
    torchrun they meet at its agent's address. A rank that fails publishes why; the others would otherwise only see a
    lost connection.

    Once all ranks have come, each calls ``prepare``, which may take up to an hour: the group's timeouts begin after
    it, or with ``finish_warm_up`` if the network ``compiles``. The block gets what ``prepare`` returns.

    Raises:
        UserError: another rank raised one.
        PeerFailure: ranks are missing after two minutes (the message names them), another rank failed, or was killed.
        TrainingStopped: this rank or another was asked to stop before all were ready.
    """
    torch.set_num_threads(rank_info.threads)  # the data loader counts its CPUs by it, too
    if rank_info.device.type == "cuda":
        torch.cuda.set_device(rank_info.device)
    if rank_info.world_size == 1:
        with interruptible(get_stop_reason):
            prepared = prepare()
        yield prepared
        return
    ended_file = rendezvous_dir / f"ended-{rank_info.start_id}.jsonl"
    store, rank_hosts = _rendezvous(rank_info, rendezvous_dir, ended_file), []
    heartbeat = Heartbeat(store, rank_info.rank)
    try:
        try:
            rank_hosts = _wait_for_all(store, rank_info, "come", JOIN_TIMEOUT_S, ended_file)
        finally:
            if rank_info.rank == 0:  # a later job with the same id must not find it
                _address_file(rank_info, rendezvous_dir).unlink(missing_ok=True)
        with interruptible(get_stop_reason):  # not before all have come: a late rank would wait for one that has left
            prepared = prepare()
            _wait_for_all(store, rank_info, "get ready", READY_TIMEOUT_S, ended_file)
        rendezvous.select_interface(store, [host for host, _ in rank_hosts], *_store_address(rank_info, store))
        dist.init_process_group(
            "nccl" if rank_info.device.type == "cuda" else "gloo",
            store=store,
            rank=rank_info.rank,
            world_size=rank_info.world_size,
            timeout=datetime.timedelta(seconds=READY_TIMEOUT_S if compiles else _hang_timeout_s(rank_info)),
        )
        _groups.append(dist.group.WORLD)
        yield prepared
    except BaseException as error:
        if not peer_failure.is_lost_connection(error):
            peer_failure.publish_failure(store, rank_info.rank, error)
            time.sleep(0 if rank_info.rank else STORE_LINGER_S)  # rank 0 hosts the store, where the others read it
            raise
        raise peer_failure.root_cause(store, rank_hosts, rank_info.rank, error, ended_file) from error
    finally:
        heartbeat.close()
        if dist.is_initialized():
            dist.destroy_process_group()


@atexit.register
def _join_gloo_threads() -> None:
    """Wait for gloo's threads while they can still release their tensors.

    For that they need the GIL, and a thread that asks an exiting interpreter for it aborts the process (SIGABRT): a
    rank would fail after a successful run. Deleting a group waits for its threads, and releases the GIL if Python held
    the last reference. DDP also holds one, and is part of reference cycles: hence the garbage collection.
    """
    if _groups:
        gc.collect()
        _groups.clear()


def finish_warm_up(rank_info: RankInfo) -> None:
    """Wait for the slowest rank, which may compile for long. From now on the timeout of hung ranks applies."""
    if rank_info.world_size > 1:
        dist.barrier()
        dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=_hang_timeout_s(rank_info)))


def _hang_timeout_s(rank_info: RankInfo) -> float:
    """Return the seconds after which a rank counts as hung. NCCL kills the process then, so gloo times out first."""
    return JOIN_TIMEOUT_S * (1.5 if rank_info.device.type == "cuda" else 1)


def _wait_for_all(
    store: dist.Store, rank_info: RankInfo, stage: str, timeout_s: float, ended_file: Path
) -> list[tuple[str, int]]:
    """Wait until all ranks have reached this ``stage``. Returns the host and process id of each rank."""
    ranks = [f"{stage}/{r}" for r in range(rank_info.world_size)]
    store.set(ranks[rank_info.rank], json.dumps([socket.gethostname(), os.getpid()]))
    deadline = time.monotonic() + timeout_s
    while not peer_failure.call_with_timeout(JOIN_TIMEOUT_S, lambda: store.check(ranks)):
        if (cause := peer_failure.published_failure(store) or peer_failure.reported_end(ended_file)) is not None:
            time.sleep(0 if rank_info.rank else STORE_LINGER_S)
            raise cause
        if time.monotonic() > deadline:
            missing = [r for r, key in enumerate(ranks) if not store.check([key])]
            raise peer_failure.PeerFailure(  # another start may succeed: a node was slow, or died
                f"ranks {missing} of {rank_info.world_size} did not {stage} within {timeout_s:g} s: see their logs"
            )
        time.sleep(STORE_POLL_S)
    return [tuple(json.loads(store.get(key))) for key in ranks]


def _address_file(rank_info: RankInfo, folder: Path) -> Path:
    return folder / f"rendezvous-{rank_info.start_id}.json"


def _rendezvous(rank_info: RankInfo, folder: Path, ended_file: Path) -> dist.Store:
    timeout = datetime.timedelta(seconds=JOIN_TIMEOUT_S)
    if rank_info.launcher == "torchrun":  # its agent has already chosen an address
        return next(iter(dist.rendezvous("env://", rank_info.rank, rank_info.world_size, timeout=timeout)))[0]
    address_file = _address_file(rank_info, folder)
    if rank_info.rank > 0:
        return rendezvous.connect_store(address_file, ended_file, timeout_s=JOIN_TIMEOUT_S)
    one_node = rank_info.local_world_size == rank_info.world_size
    return rendezvous.open_store(address_file, one_node=one_node, timeout_s=JOIN_TIMEOUT_S)


def _store_address(rank_info: RankInfo, store: dist.Store) -> tuple[str, int]:
    """Return the host and port at which this rank reaches the store."""
    if rank_info.launcher == "torchrun":
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return cast(dist.TCPStore, store).host, cast(dist.TCPStore, store).port


class Consensus:
    """Consensus on flags across ranks: the maximum of each flag over all ranks, known one step later.

    The exchange runs over gloo during the training step, so it adds no wait and never touches the device. Every rank
    reads the same result at the same step.
    """

    def __init__(self, rank_info: RankInfo) -> None:
        timeout = datetime.timedelta(seconds=JOIN_TIMEOUT_S)  # gloo's default is half an hour
        self._group = dist.new_group(backend="gloo", timeout=timeout) if rank_info.world_size > 1 else None
        if self._group is not None:
            _groups.append(self._group)
        self._pending: tuple[dist.Work | None, torch.Tensor] | None = None

    def exchange(self, flags: list[int]) -> list[int]:
        """Send this step's flags, and return the maximum of the previous step's (zeros at first)."""
        agreed = self.wait_pending() or [0] * len(flags)
        own_flags = torch.tensor(flags)
        work = dist.all_reduce(own_flags, dist.ReduceOp.MAX, group=self._group, async_op=True) if self._group else None
        self._pending = (work, own_flags)
        return agreed

    def agree_now(self, flags: list[int]) -> list[int]:
        """Return the maximum of these flags and those of the pending exchange. Waits for the slowest rank."""
        previous = self.exchange(flags)
        return [max(pair) for pair in zip(previous, self.wait_pending() or previous, strict=True)]

    def wait_pending(self) -> list[int] | None:
        """Wait for the pending exchange and return its result; None if there is none."""
        if self._pending is None:
            return None
        work, flags = self._pending
        if work is not None:
            work.wait()
        self._pending = None
        return [int(f) for f in flags.tolist()]
