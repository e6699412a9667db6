"""When a rank ends, the others learn of what: a lost connection alone says nothing that a person could mend."""

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
from typing import Any, TypeVar, cast

import torch.distributed as dist

from runyard import known_causes, out_of_memory
from runyard.errors import UserError
from runyard.training.distributed.heartbeat import describe_rank
from runyard.training.stop_signals import StopReason, TrainingStopped

_oom = out_of_memory.OomMonitor()  # from the start of this process on
PEER_FAILURE_WAIT_S = 2.0  # how long a rank that lost a connection looks for who is gone
STORE_TIMEOUT_S = 5.0  # and how long for an answer of the store, which hangs where rank 0 does
# What gloo says where another rank is gone or late. All else that it says is a failure of its own.
LOST_CONNECTION = re.compile(
    r"closed by peer|reset by peer|broken pipe|timed? ?out|refused|no route to host|caused pair closure", re.IGNORECASE
)
OF_GLOO = ("gloo", "pair closure")  # one of its messages lacks its name
_T = TypeVar("_T")


class StoreTimeout(RuntimeError):
    """The store says nothing: rank 0, which has it, is held still or cut off."""


def call_with_timeout(seconds: float, ask: Callable[[], _T]) -> _T:
    """What ``ask`` returns or raises. A store whose rank 0 is held still answers never, whatever its own time-out says:
    so a thread asks, for which nobody waits longer.

    Raises:
        NoAnswer: there was none in time.
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


class PeerFailure(Exception):
    """Another rank ended, and this one cannot go on. Says which, and of what as far as it can be known.

    ``failure`` has what the journal keeps of that rank's end: rank, node, step, exception and cause, where known.
    """

    def __init__(self, message: str, **failure: Any) -> None:
        super().__init__(message)
        self.failure = failure


def failure_record(error: BaseException, rank: int) -> dict[str, Any]:
    """What the journal keeps of an error met on ``rank``, which may be another's: only what is known."""
    if isinstance(error, PeerFailure):
        return error.failure
    kind = type(error).__name__
    cause = None if isinstance(error, UserError) else known_causes.classify(kind, str(error))
    found = {"rank": rank, "node": slurm_node_name(), "exception": kind}
    step = vars(error).get("step")
    return found | ({} if step is None else {"step": step}) | ({} if cause is None else {"cause": cause.name})


def slurm_node_name() -> str:
    """As SLURM names it, which takes no other name; outside of SLURM the host's own name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


@contextlib.contextmanager
def errors_tagged_with_step(step: Callable[[], int]) -> Iterator[None]:
    """An error that leaves the block says at which step of the training it was met."""
    try:
        yield
    except Exception as error:
        vars(error).setdefault("step", step())
        raise


def is_lost_connection(error: BaseException) -> bool:
    """Whether this is what a rank meets when another is gone, and no failure of its own."""
    said = str(error)
    return isinstance(error, (dist.DistError, StoreTimeout)) or (
        type(error) is RuntimeError
        and any(record in said for record in OF_GLOO)
        and LOST_CONNECTION.search(said) is not None
    )


def publish_failure(store: dist.Store, rank: int, error: BaseException) -> None:
    """The first rank to fail says of what; only the first is heard."""
    record = failure_record(error, rank) | {
        "message": known_causes.error_text(error),
        "user_error": isinstance(error, UserError),
        "stop": int(error.stop) if isinstance(error, TrainingStopped) else 0,
    }
    with contextlib.suppress(RuntimeError):  # rank 0 kept the store, and is gone or held still
        call_with_timeout(STORE_TIMEOUT_S, lambda: store.compare_set("failed", "", json.dumps(record)))


def published_failure(store: dist.Store) -> UserError | PeerFailure | TrainingStopped | None:
    """What the first rank to fail said, None where none has."""
    if not store.check(["failed"]):
        return None
    record = json.loads(store.get("failed"))
    stop, user_error, message = (record.pop(key) for key in ("stop", "user_error", "message"))
    if stop:
        return TrainingStopped(StopReason(stop))
    said = f"rank {record['rank']}: {message}"
    return UserError(said) if user_error else PeerFailure(said, **record)


def reported_end(notes: Path) -> PeerFailure | None:
    """Who has ended, by what led this start's ranks and has seen them end (cluster/job/controller.py); None: nobody."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(notes.read_text().splitlines()[0])
        return PeerFailure(f"rank {record['rank']} {record['message']}", rank=record["rank"], node=slurm_node_name())
    return None


def root_cause(
    store: dist.Store, places: list[tuple[str, int]], rank: int, error: BaseException, notes: Path
) -> UserError | PeerFailure | TrainingStopped:
    """What the others say they failed of, or who of them is gone without a word or does not answer; else ``error``.

    Rank 0 has the store, and stays until the others who look into it have seen what they need: they may be slower. It
    may also be the one that hangs, and the store with it.
    """
    try:
        found = call_with_timeout(
            PEER_FAILURE_WAIT_S + STORE_TIMEOUT_S, lambda: _find_cause(store, places, rank, error, notes)
        )
    except StoreTimeout:
        of, where = (f" of {len(places)}", f", on {places[0][0]}") if places else ("", "")
        return PeerFailure(f"rank 0{of} does not answer: look into its log{where}", rank=0)
    with contextlib.suppress(RuntimeError):
        call_with_timeout(PEER_FAILURE_WAIT_S + STORE_TIMEOUT_S, lambda: _wait_for_readers(store, len(places), rank))
    return found


def _wait_for_readers(store: dist.Store, world_size: int, rank: int) -> None:
    """This rank knows enough; rank 0 stays until all who looked do."""
    store.set(f"knows/{rank}", "")
    looking = [r for r in range(world_size) if store.check([f"waits/{r}"])] if rank == 0 else []
    deadline = time.monotonic() + PEER_FAILURE_WAIT_S
    while looking and not store.check([f"knows/{r}" for r in looking]) and time.monotonic() < deadline:
        time.sleep(0.05)


def _find_cause(
    store: dist.Store, places: list[tuple[str, int]], rank: int, error: BaseException, notes: Path
) -> UserError | PeerFailure | TrainingStopped:
    deadline = time.monotonic() + PEER_FAILURE_WAIT_S
    with contextlib.suppress(RuntimeError):
        store.set(f"waits/{rank}", "")
    while time.monotonic() < deadline:
        with contextlib.suppress(RuntimeError):
            if (cause := published_failure(store)) is not None:
                return cause
        local_exits = {r: _exit_status(pid) for r, (host, pid) in enumerate(places) if host == socket.gethostname()}
        if ended_ranks := {r: how for r, how in local_exits.items() if how is not None}:
            return _ended_ranks(ended_ranks, len(places))
        if (lost := reported_end(notes)) is not None:
            return lost
        time.sleep(0.05)
    with contextlib.suppress(RuntimeError):
        if silent_ranks := [r for r in range(len(places)) if not store.check([f"waits/{r}"])]:
            hosts = ", ".join(sorted({places[r][0] for r in silent_ranks}))
            stand = "".join(f"; {words}" for r in silent_ranks if (words := describe_rank(store, r)))
            where = {"rank": silent_ranks[0], "node": hosts} if len(silent_ranks) == 1 else {}
            message = f"ranks {silent_ranks} of {len(places)} do not answer: look into their logs, on {hosts}{stand}"
            return PeerFailure(message, **where)
    return PeerFailure(f"the connection to another rank was lost ({short_error(error)}): look into the ranks' logs")


def short_error(error: BaseException) -> str:
    """What gloo or NCCL said, in one line and without the place in its source."""
    said = str(error) or type(error).__name__
    said = said[max(0, said.find("Last error")) :]  # NCCL's own word, after those of all that called it
    return re.sub(r"^\[[^]]*\]\s*|\. This may indicate.*$", "", " ".join(said.split()))[:300]


def _ended_ranks(ends: dict[int, str], of: int) -> PeerFailure:
    """Ranks of this node are gone: how, as far as the kernel says it."""
    first, how = next(iter(ends.items()))
    which = f"rank{'s' * (len(ends) > 1)} {', '.join(map(str, ends))} of {of} ended without a word"
    oom_message = _oom.message()
    known = ", ".join(filter(None, [known_causes.exit_text(how), oom_message]))
    cause = known_causes.classify(known_causes.OUT_OF_MEMORY if oom_message else how, "")
    named = {} if cause is None else {"cause": cause.name}
    return PeerFailure(f"{which}{known and ': '}{known}", rank=first, node=slurm_node_name(), **named)


def _exit_status(pid: int) -> str | None:
    """How a process of this node ended: None while it lives, "" where nobody can say any more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    if fields[0] != "Z":
        return None
    # Its user may read it until its parent has taken it.
    return known_causes.describe_exit(os.waitstatus_to_exitcode(int(fields[-1])))
