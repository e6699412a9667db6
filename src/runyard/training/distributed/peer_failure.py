"""Tells all ranks why a peer failed; a lost connection alone does not show what to fix."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar, cast

import torch.distributed as dist

from runyard import known_causes, out_of_memory
from runyard.errors import TrainingFailed, UserError
from runyard.training.distributed.heartbeat import describe_rank
from runyard.training.stop_signals import StopReason, TrainingStopped

_oom = out_of_memory.OomMonitor()  # watches from the start of this process on
PEER_FAILURE_WAIT_S = 2.0  # how long a rank that lost a connection looks for the rank that ended
STORE_TIMEOUT_S = 5.0  # how long it waits for an answer of the store, which hangs if rank 0 does
# gloo's messages if another rank has ended or is late. All its other messages are failures of its own.
LOST_CONNECTION = re.compile(
    r"closed by peer|reset by peer|broken pipe|timed? ?out|refused|no route to host|caused pair closure", re.IGNORECASE
)
OF_GLOO = ("gloo", "pair closure")  # one of its messages does not contain its name
_T = TypeVar("_T")


class StoreTimeout(RuntimeError):
    """The store did not answer: rank 0, which hosts it, is suspended or unreachable."""


def call_with_timeout(seconds: float, ask: Callable[[], _T]) -> _T:
    """Return or raise what ``ask`` does, within a timeout.

    If rank 0 is suspended, its store never answers, whatever the store's own timeout is: so a thread asks, and is
    abandoned after ``seconds``.

    Raises:
        StoreTimeout: there was no answer in time.
    """
    answers: queue.Queue[tuple[_T | None, Exception | None]] = queue.Queue()

    def work() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=work, name="asks the store", daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise StoreTimeout(f"the ranks' store gave no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return cast(_T, answer)


class PeerFailure(TrainingFailed):
    """Another rank ended, and this one cannot continue. The message says which rank, and why if that is known.

    ``failure`` has the fields that the journal stores of that rank's failure: rank, node, step, exception and cause, as
    far as they are known.
    """

    def __init__(self, message: str, **failure: object) -> None:
        super().__init__(message)
        self.failure = failure


def failure_record(error: BaseException, rank: int) -> dict[str, object]:
    """Return the fields that the journal stores of an error on ``rank``, or of another rank's: only what is known."""
    if isinstance(error, PeerFailure):
        return error.failure
    kind = type(error).__name__
    cause = None if isinstance(error, UserError) else known_causes.classify(kind, str(error))
    fields = {"rank": rank, "node": slurm_node_name(), "exception": kind}
    step = vars(error).get("step")
    return fields | ({} if step is None else {"step": step}) | ({} if cause is None else {"cause": cause.name})


def slurm_node_name() -> str:
    """Return this node's name in SLURM, the only one that SLURM's commands accept; outside SLURM the host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


@contextlib.contextmanager
def errors_tagged_with_step(step: Callable[[], int]) -> Iterator[None]:
    """Give an error that leaves the block the training step at which it was raised, as its attribute ``step``."""
    try:
        yield
    except Exception as error:
        vars(error).setdefault("step", step())
        raise


def is_lost_connection(error: BaseException) -> bool:
    """Return whether this error means that another rank has ended, and is not a failure of this rank."""
    message = str(error)
    return isinstance(error, (dist.DistError, StoreTimeout)) or (
        type(error) is RuntimeError
        and any(part in message for part in OF_GLOO)
        and LOST_CONNECTION.search(message) is not None
    )


def publish_failure(store: dist.Store, rank: int, error: BaseException) -> None:
    """Publish why this rank failed. Only the first failure is kept."""
    record = failure_record(error, rank) | {
        "message": known_causes.error_text(error),
        "user_error": isinstance(error, UserError),
        "stop": int(error.stop) if isinstance(error, TrainingStopped) else 0,
    }
    with contextlib.suppress(RuntimeError):  # rank 0 hosts the store, and has ended or is suspended
        call_with_timeout(STORE_TIMEOUT_S, lambda: store.compare_set("failed", "", json.dumps(record)))


def published_failure(store: dist.Store) -> UserError | PeerFailure | TrainingStopped | None:
    """Return the first published failure, or None."""
    if not store.check(["failed"]):
        return None
    record = json.loads(store.get("failed"))
    stop, user_error, message = (record.pop(key) for key in ("stop", "user_error", "message"))
    if stop:
        return TrainingStopped(StopReason(stop))
    message = f"rank {record['rank']}: {message}"
    return UserError(message) if user_error else PeerFailure(message, **record)


def reported_end(ended_file: Path) -> PeerFailure | None:
    """Return the first ended rank that this start's controller has reported (cluster/job/controller.py), or None."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(ended_file.read_text().splitlines()[0])
        return PeerFailure(f"rank {record['rank']} {record['message']}", rank=record["rank"], node=slurm_node_name())
    return None


def root_cause(
    store: dist.Store, rank_hosts: list[tuple[str, int]], rank: int, error: BaseException, ended_file: Path
) -> UserError | PeerFailure | TrainingStopped:
    """Return a peer's published failure, or which peer was killed or does not answer, else the lost connection.

    Rank 0 hosts the store, and waits until the other ranks have read what they need, since they may be slower. It may
    also be the rank that hangs, and the store with it.
    """
    try:
        cause = call_with_timeout(
            PEER_FAILURE_WAIT_S + STORE_TIMEOUT_S, lambda: _find_cause(store, rank_hosts, rank, error, ended_file)
        )
    except StoreTimeout:
        total, where = (f" of {len(rank_hosts)}", f", on {rank_hosts[0][0]}") if rank_hosts else ("", "")
        return PeerFailure(f"rank 0{total} does not answer: look into its log{where}", rank=0)
    with contextlib.suppress(RuntimeError):
        world_size = len(rank_hosts)
        call_with_timeout(PEER_FAILURE_WAIT_S + STORE_TIMEOUT_S, lambda: _wait_for_readers(store, world_size, rank))
    return cause


def _wait_for_readers(store: dist.Store, world_size: int, rank: int) -> None:
    """Mark this rank as done reading; rank 0 waits until all readers are done."""
    store.set(f"knows/{rank}", "")
    readers = [r for r in range(world_size) if store.check([f"waits/{r}"])] if rank == 0 else []
    deadline = time.monotonic() + PEER_FAILURE_WAIT_S
    while readers and not store.check([f"knows/{r}" for r in readers]) and time.monotonic() < deadline:
        time.sleep(0.05)


def _find_cause(
    store: dist.Store, rank_hosts: list[tuple[str, int]], rank: int, error: BaseException, ended_file: Path
) -> UserError | PeerFailure | TrainingStopped:
    deadline = time.monotonic() + PEER_FAILURE_WAIT_S
    store_answers = True
    with contextlib.suppress(RuntimeError):
        store.set(f"waits/{rank}", "")
    while time.monotonic() < deadline:
        try:
            if store_answers and (cause := published_failure(store)) is not None:
                return cause
        except RuntimeError:  # it is gone with rank 0; each further question would print torch's C++ stack
            store_answers = False
        local_exits = {r: _exit_status(pid) for r, (host, pid) in enumerate(rank_hosts) if host == socket.gethostname()}
        if ended_ranks := {r: status for r, status in local_exits.items() if status is not None}:
            return _ended_ranks(ended_ranks, len(rank_hosts))
        if (peer_failure := reported_end(ended_file)) is not None:
            return peer_failure
        time.sleep(0.05)
    if not store_answers and rank_hosts:
        message = f"rank 0 of {len(rank_hosts)} ended without a word: see its log, on {rank_hosts[0][0]}"
        return PeerFailure(message, rank=0, node=rank_hosts[0][0])
    with contextlib.suppress(RuntimeError):
        if silent_ranks := [r for r in range(len(rank_hosts)) if not store.check([f"waits/{r}"])]:
            hosts = ", ".join(sorted({rank_hosts[r][0] for r in silent_ranks}))
            locations = "".join(f"; {text}" for r in silent_ranks if (text := describe_rank(store, r)))
            fields = {"rank": silent_ranks[0], "node": hosts} if len(silent_ranks) == 1 else {}
            ranks = f"ranks {silent_ranks} of {len(rank_hosts)}"
            message = f"{ranks} do not answer: look into their logs, on {hosts}{locations}"
            return PeerFailure(message, **fields)
    return PeerFailure(f"the connection to another rank was lost ({short_error(error)}): look into the ranks' logs")


def short_error(error: BaseException) -> str:
    """Return the message of gloo or NCCL in one line, without its source location."""
    message = str(error) or type(error).__name__
    message = message[max(0, message.find("Last error")) :]  # NCCL's own message, after those of its callers
    return re.sub(r"^\[[^]]*\]\s*|\. This (may indicate|is typically).*$", "", " ".join(message.split()))[:300]


def _ended_ranks(exits: dict[int, str], world_size: int) -> PeerFailure:
    """Describe ranks of this node that have ended, by their exit status as far as the kernel tells it."""
    first, status = next(iter(exits.items()))
    ranks = f"rank{'s' * (len(exits) > 1)} {', '.join(map(str, exits))} of {world_size} ended without a word"
    oom_message = _oom.message()
    details = ", ".join(filter(None, [known_causes.exit_text(status), oom_message]))
    cause = known_causes.classify(known_causes.OUT_OF_MEMORY if oom_message else status, "")
    fields = {} if cause is None else {"cause": cause.name}
    return PeerFailure(f"{ranks}{details and ': '}{details}", rank=first, node=slurm_node_name(), **fields)


def _exit_status(pid: int) -> str | None:
    """Return how a process of this node ended: None while it is alive, "" if that can no longer be known.

    psutil does not say with which status a process has ended that is not its own child.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    if fields[0] != "Z":
        return None
    # Readable by this user until the parent has waited for the process.
    return known_causes.describe_exit(os.waitstatus_to_exitcode(int(fields[-1])))
