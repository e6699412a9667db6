"""One shape for every launcher: who am I among which ranks, on what device, and how do we meet."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import gc
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # DDP would import it within a group, and its defaults would keep that for ever

from runyard.errors import UserError
from runyard.training.distributed import peer_failure, rendezvous
from runyard.training.distributed.heartbeat import Heartbeat
from runyard.training.stop_signals import StopReason, interruptible

# What each launcher calls (rank, world size, local rank, local world size). The first whose rank is set is believed.
LAUNCHERS: dict[str, tuple[str, str, str, str]] = {
    "submitit, local": (
        "SUBMITIT_LOCAL_GLOBALID",
        "SUBMITIT_LOCAL_NTASKS",
        "SUBMITIT_LOCAL_LOCALID",
        "SUBMITIT_LOCAL_NTASKS",
    ),
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "SLURM": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}
TORCHRUN_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")  # where its agent has the ranks meet
NON_SRUN_STEP_IDS = (
    "4294967290",
    "4294967291",
)  # SLURM_STEP_ID of salloc's shell and of a batch script: no srun started those
JOIN_TIMEOUT_S = 120.0
STORE_POLL_S = 0.05
STORE_LINGER_S = 10 * STORE_POLL_S  # for the others to look into the store
READY_TIMEOUT_S = 3600.0  # a node may copy its data for long, and a rank compile for longer than another
_groups: list[Any] = []  # for their threads to be waited for at the process's end


@dataclass(frozen=True)
class RankInfo:
    """A task's place among the tasks of its run.

    Where the ranks meet is no part of it: rank 0 chooses address and port when they do (``joined_process_group``), or
    torchrun's agent has (MASTER_ADDR, MASTER_PORT). Which nodes they are on stands in the journal's start row.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    launcher: str
    start_id: str
    cpus_per_task: int | None = None  # by SLURM to each task, whether or not it binds them to it

    @property
    def device(self) -> torch.device:
        """This task's GPU (the only one it sees, or the one of its local rank), else the CPU."""
        count = torch.cuda.device_count()
        if count == 0:
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank % count)

    @property
    def threads(self) -> int:
        """CPUs this task may use: its own allocation's, shared with the tasks beside it where they share one mask."""
        cpus = len(os.sched_getaffinity(0))
        shared = self.launcher != "SLURM" or cpus == os.cpu_count()  # where srun binds, each task has CPUs of its own
        mine = cpus // self.local_world_size if shared else cpus
        return max(1, min(mine, self.cpus_per_task or mine))


def from_environment(env: Mapping[str, str]) -> RankInfo:
    """Read the launcher's variables. With none set, this is the only task.

    Raises:
        UserError: a launcher's variables are set in part, or are no numbers.
    """
    in_step = (
        env.get("SLURM_STEP_ID", NON_SRUN_STEP_IDS[0]) not in NON_SRUN_STEP_IDS
    )  # else SLURM's variables speak of the whole job
    for launcher, names in LAUNCHERS.items():
        if names[0] not in env or (launcher == "SLURM" and not in_step):
            continue
        if launcher == "SLURM":
            env = {**env, names[3]: _slurm_tasks_here(env)}
        needed = names + (TORCHRUN_RENDEZVOUS if launcher == "torchrun" and env.get(names[1]) != "1" else ())
        _require_all_variables(launcher, needed, env)
        try:
            rank, world_size, local_rank, local_world_size = (int(env[n]) for n in names)
        except ValueError as error:
            raise UserError(
                f"{', '.join(f'{n}={env.get(n)}' for n in names)}: expected whole numbers from {launcher} ({error})"
            ) from None
        if not 0 <= rank < world_size:
            raise UserError(f"{names[0]}={rank}: expected below {names[1]}={world_size}")
        given = env.get("SLURM_CPUS_PER_TASK", "") if launcher == "SLURM" else ""
        cpus = int(given) if given.isdigit() else None
        return RankInfo(rank, world_size, local_rank, local_world_size, launcher, _start_id(env), cpus)
    for launcher, names in LAUNCHERS.items():  # without its rank each task would take itself for the only one
        if launcher != "SLURM" or in_step:
            _require_all_variables(launcher, names, env)
    return RankInfo(0, 1, 0, 1, "none", str(os.getpid()))


def _require_all_variables(launcher: str, names: tuple[str, ...], env: Mapping[str, str]) -> None:
    given = [n for n in names if env.get(n)]
    if given and (missing := list(dict.fromkeys(n for n in names if not env.get(n)))):
        raise UserError(
            f"{given[0]}={env[given[0]]} is set but {', '.join(missing)} is not: "
            f"started by {launcher} in part; set all of {', '.join(names)} or none"
        )


def _slurm_tasks_here(env: Mapping[str, str]) -> str:
    """How many tasks of this step run on this node; SLURM lists them by node as in ``4(x2),3``. Empty if unknown."""
    if "SLURM_STEP_TASKS_PER_NODE" not in env:
        return env.get("SLURM_NTASKS_PER_NODE", "")
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", env["SLURM_STEP_TASKS_PER_NODE"])
    by_node = [tasks for tasks, times in parts for _ in range(int(times or 1))]
    return dict(enumerate(by_node)).get(int(env.get("SLURM_NODEID", "-1")), "")


def _start_id(env: Mapping[str, str]) -> str:
    """A name that no earlier start of the same job had, so that nobody finds a dead rank 0's address."""
    if "SUBMITIT_LOCAL_JOB_ID" in env:  # a process's number, which comes round again, in a container soon
        return "-".join(filter(None, (env["SUBMITIT_LOCAL_JOB_ID"], env.get("RUNYARD_START"))))
    slurm = [env.get(n, "0") for n in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")]
    return "-".join(slurm) if "SLURM_JOB_ID" in env else env.get("TORCHELASTIC_RUN_ID", "alone")


@contextlib.contextmanager
def joined_process_group(
    rank_info: RankInfo,
    rendezvous_dir: Path,
    prepare: Callable[[], Any] = lambda: None,
    should_stop: Callable[[], StopReason] = lambda: StopReason.NO,
    *,
    compiles: bool = False,
) -> Iterator[Any]:
    """Within the block this task belongs to the process group: NCCL on GPUs, gloo without. A world of one joins none.

    Rank 0 opens a store on a free port and writes its address into ``rendezvous_dir``, which all ranks see. Under
    torchrun they meet where its agent says. What a rank fails of it tells the others, which otherwise would learn only
    that a connection was lost.

    Once all have come each does what is to be ``prepare``, which may take it up to an hour: the group's time limits
    begin after it. What it returns is the block's. Where the network ``compiles`` they begin with ``finish_warm_up``.

    Raises:
        UserError: another rank met one.
        RankLost: ranks are missing after two minutes (the message names them), another rank failed, or was killed.
        Stopped: this rank, or another, was to stop before all were ready.
    """
    torch.set_num_threads(rank_info.threads)  # by which the loader counts its CPUs, too
    if rank_info.device.type == "cuda":
        torch.cuda.set_device(rank_info.device)
    if rank_info.world_size == 1:
        with interruptible(should_stop):
            prepared = prepare()
        yield prepared
        return
    notes = rendezvous_dir / f"ended-{rank_info.start_id}.jsonl"
    store, places = _rendezvous(rank_info, rendezvous_dir, notes), []
    heartbeat = Heartbeat(store, rank_info.rank)
    try:
        try:
            places = _wait_for_all(store, rank_info, "come", JOIN_TIMEOUT_S, notes)
        finally:
            if rank_info.rank == 0:  # a later job of the same number must not find it
                _address_file(rank_info, rendezvous_dir).unlink(missing_ok=True)
        with interruptible(should_stop):  # not before all have come: who comes late would wait for one that has left
            prepared = prepare()
            _wait_for_all(store, rank_info, "get ready", READY_TIMEOUT_S, notes)
        rendezvous.select_interface(store, [host for host, _ in places], *_store_address(rank_info, store))
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
            time.sleep(0 if rank_info.rank else STORE_LINGER_S)  # rank 0 has the store, where the others are to read it
            raise
        raise peer_failure.root_cause(store, places, rank_info.rank, error, notes) from error
    finally:
        heartbeat.close()
        if dist.is_initialized():
            dist.destroy_process_group()


@atexit.register
def _join_gloo_threads() -> None:
    """Wait for gloo's threads, while they can still let go of the tensors that they were given.

    For that they need the GIL, and a thread that asks an ending interpreter for it aborts the process (SIGABRT): a rank
    would have failed after a run that went well. A group's end waits for its threads, without the GIL if the last who
    held the group is Python. DDP, which also holds it, ends in cycles.
    """
    if _groups:
        gc.collect()
        _groups.clear()


def finish_warm_up(rank_info: RankInfo) -> None:
    """Wait for the slowest rank, which may compile for long; from now on one that takes as long hangs."""
    if rank_info.world_size > 1:
        dist.barrier()
        dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=_hang_timeout_s(rank_info)))


def _hang_timeout_s(rank_info: RankInfo) -> float:
    """After which a rank hangs. NCCL ends the whole process then: the vote, over gloo, is to say first who it is."""
    return JOIN_TIMEOUT_S * (1.5 if rank_info.device.type == "cuda" else 1)


def _wait_for_all(
    store: dist.Store, rank_info: RankInfo, stage: str, timeout_s: float, notes: Path
) -> list[tuple[str, int]]:
    """Host and process id of each rank, once all did this."""
    ranks = [f"{stage}/{r}" for r in range(rank_info.world_size)]
    store.set(ranks[rank_info.rank], json.dumps([socket.gethostname(), os.getpid()]))
    deadline = time.monotonic() + timeout_s
    while not peer_failure.call_with_timeout(JOIN_TIMEOUT_S, lambda: store.check(ranks)):
        if (cause := peer_failure.published_failure(store) or peer_failure.reported_end(notes)) is not None:
            time.sleep(0 if rank_info.rank else STORE_LINGER_S)
            raise cause
        if time.monotonic() > deadline:
            missing = [r for r, key in enumerate(ranks) if not store.check([key])]
            raise peer_failure.PeerFailure(  # which another start may mend: a node was slow, or died
                f"ranks {missing} of {rank_info.world_size} did not {stage} within {timeout_s:g} s: "
                "look into their logs for why they did not"
            )
        time.sleep(STORE_POLL_S)
    return [tuple(json.loads(store.get(key))) for key in ranks]


def _address_file(rank_info: RankInfo, folder: Path) -> Path:
    return folder / f"meeting-{rank_info.start_id}.json"


def _rendezvous(rank_info: RankInfo, folder: Path, notes: Path) -> dist.Store:
    timeout = datetime.timedelta(seconds=JOIN_TIMEOUT_S)
    if rank_info.launcher == "torchrun":  # its agent has already chosen an address
        return next(iter(dist.rendezvous("env://", rank_info.rank, rank_info.world_size, timeout=timeout)))[0]
    address_file = _address_file(rank_info, folder)
    if rank_info.rank > 0:
        return rendezvous.connect_store(address_file, notes, timeout_s=JOIN_TIMEOUT_S)
    one_node = rank_info.local_world_size == rank_info.world_size
    return rendezvous.open_store(address_file, one_node=one_node, timeout_s=JOIN_TIMEOUT_S)


def _store_address(rank_info: RankInfo, store: dist.Store) -> tuple[str, int]:
    """Host and port at which this rank reaches the store."""
    if rank_info.launcher == "torchrun":
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return cast(dist.TCPStore, store).host, cast(dist.TCPStore, store).port


class Consensus:
    """What all ranks agree on at each step: the highest flag any of them raised, one step later.

    The exchange runs over gloo beside the training step, so it costs no wait and never touches the device. Every rank
    reads the same answer at the same step.
    """

    def __init__(self, rank_info: RankInfo) -> None:
        timeout = datetime.timedelta(seconds=JOIN_TIMEOUT_S)  # gloo's own is half an hour
        self._group = dist.new_group(backend="gloo", timeout=timeout) if rank_info.world_size > 1 else None
        if self._group is not None:
            _groups.append(self._group)
        self._pending: tuple[dist.Work | None, torch.Tensor] | None = None

    def exchange(self, flags: list[int]) -> list[int]:
        """Send this step's flags, return what was agreed on the previous step's (zeros at first)."""
        agreed = self.wait_pending() or [0] * len(flags)
        mine = torch.tensor(flags)
        work = dist.all_reduce(mine, dist.ReduceOp.MAX, group=self._group, async_op=True) if self._group else None
        self._pending = (work, mine)
        return agreed

    def agree_now(self, flags: list[int]) -> list[int]:
        """What all ranks agree on with these flags and those of the exchange under way. Waits for the slowest rank."""
        earlier = self.exchange(flags)
        return [max(pair) for pair in zip(earlier, self.wait_pending() or earlier, strict=True)]

    def wait_pending(self) -> list[int] | None:
        """Wait for the exchange under way and return what it agreed on; None if there is none."""
        if self._pending is None:
            return None
        work, flags = self._pending
        if work is not None:
            work.wait()
        self._pending = None
        return [int(f) for f in flags.tolist()]
