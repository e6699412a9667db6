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
from runyard.training.stop_signals import Stop, at_once

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
AT_TORCHRUNS = ("MASTER_ADDR", "MASTER_PORT")  # where its agent has the ranks meet
SHELLS = ("4294967290", "4294967291")  # SLURM_STEP_ID of salloc's shell and of a batch script: no srun started those
JOIN_TIMEOUT_S = 120.0
POLL_S = 0.05
LOOK_S = 10 * POLL_S  # for the others to look into the store
READY_TIMEOUT_S = 3600.0  # a node may copy its data for long, and a rank compile for longer than another
_groups: list[Any] = []  # for their threads to be waited for at the process's end


@dataclass(frozen=True)
class Dist:
    """A task's place among the tasks of its run.

    Where the ranks meet is no part of it: rank 0 chooses address and port when they do (``joined``), or torchrun's
    agent has (MASTER_ADDR, MASTER_PORT). Which nodes they are on stands in the journal's start row.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    launcher: str
    job: str
    cpus_given: int | None = None  # by SLURM to each task, whether or not it binds them to it

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
        return max(1, min(mine, self.cpus_given or mine))


def from_environment(env: Mapping[str, str]) -> Dist:
    """Read the launcher's variables. With none set, this is the only task.

    Raises:
        UserError: a launcher's variables are set in part, or are no numbers.
    """
    in_step = env.get("SLURM_STEP_ID", SHELLS[0]) not in SHELLS  # else SLURM's variables speak of the whole job
    for launcher, names in LAUNCHERS.items():
        if names[0] not in env or (launcher == "SLURM" and not in_step):
            continue
        if launcher == "SLURM":
            env = {**env, names[3]: _slurm_tasks_here(env)}
        needed = names + (AT_TORCHRUNS if launcher == "torchrun" and env.get(names[1]) != "1" else ())
        _refuse_half(launcher, needed, env)
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
        return Dist(rank, world_size, local_rank, local_world_size, launcher, _job(env), cpus)
    for launcher, names in LAUNCHERS.items():  # without its rank each task would take itself for the only one
        if launcher != "SLURM" or in_step:
            _refuse_half(launcher, names, env)
    return Dist(0, 1, 0, 1, "none", str(os.getpid()))


def _refuse_half(launcher: str, names: tuple[str, ...], env: Mapping[str, str]) -> None:
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


def _job(env: Mapping[str, str]) -> str:
    """A name that no earlier start of the same job had, so that nobody finds a dead rank 0's address."""
    if "SUBMITIT_LOCAL_JOB_ID" in env:  # a process's number, which comes round again, in a container soon
        return "-".join(filter(None, (env["SUBMITIT_LOCAL_JOB_ID"], env.get("RUNYARD_START"))))
    slurm = [env.get(n, "0") for n in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")]
    return "-".join(slurm) if "SLURM_JOB_ID" in env else env.get("TORCHELASTIC_RUN_ID", "alone")


@contextlib.contextmanager
def joined(
    place: Dist,
    meeting_folder: Path,
    first: Callable[[], Any] = lambda: None,
    should_stop: Callable[[], Stop] = lambda: Stop.NO,
    *,
    compiles: bool = False,
) -> Iterator[Any]:
    """Within the block this task belongs to the process group: NCCL on GPUs, gloo without. A world of one joins none.

    Rank 0 opens a store on a free port and writes its address into ``meeting_folder``, which all ranks see. Under
    torchrun they meet where its agent says. What a rank fails of it tells the others, which otherwise would learn only
    that a connection was lost.

    Once all have come each does what is to be ``first``, which may take it up to an hour: the group's time limits begin
    after it. What it returns is the block's. Where the network ``compiles`` they begin with ``end_of_warm_up``.

    Raises:
        UserError: another rank met one.
        RankLost: ranks are missing after two minutes (the message names them), another rank failed, or was killed.
        Stopped: this rank, or another, was to stop before all were ready.
    """
    torch.set_num_threads(place.threads)  # by which the loader counts its CPUs, too
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
    if place.world_size == 1:
        with at_once(should_stop):
            prepared = first()
        yield prepared
        return
    notes = meeting_folder / f"ended-{place.job}.jsonl"
    store, places = _meet(place, meeting_folder, notes), []
    heartbeat = Heartbeat(store, place.rank)
    try:
        try:
            places = _wait_for_all(store, place, "come", JOIN_TIMEOUT_S, notes)
        finally:
            if place.rank == 0:  # a later job of the same number must not find it
                _address_file(place, meeting_folder).unlink(missing_ok=True)
        with at_once(should_stop):  # not before all have come: who comes late would wait for one that has left
            prepared = first()
            _wait_for_all(store, place, "get ready", READY_TIMEOUT_S, notes)
        rendezvous.choose_network(store, [host for host, _ in places], *_where(place, store))
        dist.init_process_group(
            "nccl" if place.device.type == "cuda" else "gloo",
            store=store,
            rank=place.rank,
            world_size=place.world_size,
            timeout=datetime.timedelta(seconds=READY_TIMEOUT_S if compiles else _hang_s(place)),
        )
        _groups.append(dist.group.WORLD)
        yield prepared
    except BaseException as error:
        if not peer_failure.is_lost_connection(error):
            peer_failure.tell(store, place.rank, error)
            time.sleep(0 if place.rank else LOOK_S)  # rank 0 has the store, where the others are to read it
            raise
        raise peer_failure.first_cause(store, places, place.rank, error, notes) from error
    finally:
        heartbeat.close()
        if dist.is_initialized():
            dist.destroy_process_group()


@atexit.register
def _end_threads() -> None:
    """Wait for gloo's threads, while they can still let go of the tensors that they were given.

    For that they need the GIL, and a thread that asks an ending interpreter for it aborts the process (SIGABRT): a rank
    would have failed after a run that went well. A group's end waits for its threads, without the GIL if the last who
    held the group is Python. DDP, which also holds it, ends in cycles.
    """
    if _groups:
        gc.collect()
        _groups.clear()


def end_of_warm_up(place: Dist) -> None:
    """Wait for the slowest rank, which may compile for long; from now on one that takes as long hangs."""
    if place.world_size > 1:
        dist.barrier()
        dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=_hang_s(place)))


def _hang_s(place: Dist) -> float:
    """After which a rank hangs. NCCL ends the whole process then: the vote, over gloo, is to say first who it is."""
    return JOIN_TIMEOUT_S * (1.5 if place.device.type == "cuda" else 1)


def _wait_for_all(store: dist.Store, place: Dist, did: str, timeout_s: float, notes: Path) -> list[tuple[str, int]]:
    """Host and process id of each rank, once all did this."""
    ranks = [f"{did}/{r}" for r in range(place.world_size)]
    store.set(ranks[place.rank], json.dumps([socket.gethostname(), os.getpid()]))
    deadline = time.monotonic() + timeout_s
    while not peer_failure.within(JOIN_TIMEOUT_S, lambda: store.check(ranks)):
        if (cause := peer_failure.told(store) or peer_failure.ended(notes)) is not None:
            time.sleep(0 if place.rank else LOOK_S)
            raise cause
        if time.monotonic() > deadline:
            missing = [r for r, key in enumerate(ranks) if not store.check([key])]
            raise peer_failure.RankLost(  # which another start may mend: a node was slow, or died
                f"ranks {missing} of {place.world_size} did not {did} within {timeout_s:g} s: "
                "look into their logs for why they did not"
            )
        time.sleep(POLL_S)
    return [tuple(json.loads(store.get(key))) for key in ranks]


def _address_file(place: Dist, folder: Path) -> Path:
    return folder / f"meeting-{place.job}.json"


def _meet(place: Dist, folder: Path, notes: Path) -> dist.Store:
    timeout = datetime.timedelta(seconds=JOIN_TIMEOUT_S)
    if place.launcher == "torchrun":  # its agent has already chosen an address
        return next(iter(dist.rendezvous("env://", place.rank, place.world_size, timeout=timeout)))[0]
    address_file = _address_file(place, folder)
    if place.rank > 0:
        return rendezvous.find_store(address_file, notes, timeout_s=JOIN_TIMEOUT_S)
    one_node = place.local_world_size == place.world_size
    return rendezvous.open_store(address_file, one_node=one_node, timeout_s=JOIN_TIMEOUT_S)


def _where(place: Dist, store: dist.Store) -> tuple[str, int]:
    """Host and port at which this rank reaches the store."""
    if place.launcher == "torchrun":
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return cast(dist.TCPStore, store).host, cast(dist.TCPStore, store).port


class Vote:
    """What all ranks agree on at each step: the highest flag any of them raised, one step later.

    The exchange runs over gloo beside the training step, so it costs no wait and never touches the device. Every rank
    reads the same answer at the same step.
    """

    def __init__(self, place: Dist) -> None:
        timeout = datetime.timedelta(seconds=JOIN_TIMEOUT_S)  # gloo's own is half an hour
        self._group = dist.new_group(backend="gloo", timeout=timeout) if place.world_size > 1 else None
        if self._group is not None:
            _groups.append(self._group)
        self._pending: tuple[dist.Work | None, torch.Tensor] | None = None

    def exchange(self, flags: list[int]) -> list[int]:
        """Send this step's flags, return what was agreed on the previous step's (zeros at first)."""
        agreed = self.settle() or [0] * len(flags)
        mine = torch.tensor(flags)
        work = dist.all_reduce(mine, dist.ReduceOp.MAX, group=self._group, async_op=True) if self._group else None
        self._pending = (work, mine)
        return agreed

    def now(self, flags: list[int]) -> list[int]:
        """What all ranks agree on with these flags and those of the exchange under way. Waits for the slowest rank."""
        earlier = self.exchange(flags)
        return [max(pair) for pair in zip(earlier, self.settle() or earlier, strict=True)]

    def settle(self) -> list[int] | None:
        """Wait for the exchange under way and return what it agreed on; None if there is none."""
        if self._pending is None:
            return None
        work, flags = self._pending
        if work is not None:
            work.wait()
        self._pending = None
        return [int(f) for f in flags.tolist()]
