"""When a rank ends, the others learn of what: a lost connection alone says nothing that a person could mend."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from runyard import causes, oom
from runyard.errors import UserError

_oom = oom.Watch()  # from the start of this process on
LAST_WORD_S = 2.0  # how long a rank that lost a connection looks for who is gone


class RankLost(Exception):
    """Another rank ended, and this one cannot go on. Says which, and of what as far as it can be known.

    ``failure`` has what the journal keeps of that rank's end: rank, node, step, exception and cause, where known.
    """

    def __init__(self, message: str, **failure: Any) -> None:
        super().__init__(message)
        self.failure = failure


def failure(error: BaseException, rank: int) -> dict[str, Any]:
    """What the journal keeps of an error met on ``rank``, which may be another's: only what is known."""
    if isinstance(error, RankLost):
        return error.failure
    kind = type(error).__name__
    cause = None if isinstance(error, UserError) else causes.known(kind, str(error))
    found = {"rank": rank, "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(), "exception": kind}
    step = vars(error).get("step")
    return found | ({} if step is None else {"step": step}) | ({} if cause is None else {"cause": cause.name})


@contextlib.contextmanager
def at_step(step: Callable[[], int]) -> Iterator[None]:
    """An error that leaves the block says at which step of the training it was met."""
    try:
        yield
    except Exception as error:
        vars(error).setdefault("step", step())
        raise


def is_lost_connection(error: BaseException) -> bool:
    """Whether this is what a rank meets when another is gone, and no failure of its own."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error))


def tell(store: dist.Store, rank: int, error: BaseException) -> None:
    """The first rank to fail says of what; only the first is heard."""
    word = failure(error, rank) | {"message": causes.said(error), "user_error": isinstance(error, UserError)}
    with contextlib.suppress(RuntimeError):  # rank 0 kept the store, and is gone
        store.compare_set("failed", "", json.dumps(word))


def first_cause(store: dist.Store, places: list[tuple[str, int]], rank: int) -> UserError | RankLost:
    """What the others say they failed of, or who of them is gone without a word or does not answer.

    Rank 0 has the store, and stays until the others who look into it have seen what they need: they may be slower.
    """
    cause = _found(store, places, rank)
    with contextlib.suppress(RuntimeError):
        store.set(f"knows/{rank}", "")
        looking = [r for r in range(len(places)) if store.check([f"waits/{r}"])] if rank == 0 else []
        deadline = time.monotonic() + LAST_WORD_S
        while looking and not store.check([f"knows/{r}" for r in looking]) and time.monotonic() < deadline:
            time.sleep(0.05)
    return cause


def _found(store: dist.Store, places: list[tuple[str, int]], rank: int) -> UserError | RankLost:
    deadline = time.monotonic() + LAST_WORD_S
    with contextlib.suppress(RuntimeError):
        store.set(f"waits/{rank}", "")
    while time.monotonic() < deadline:
        with contextlib.suppress(RuntimeError):
            if store.check(["failed"]):
                word = json.loads(store.get("failed"))
                message = f"rank {word['rank']}: {word.pop('message')}"
                return UserError(message) if word.pop("user_error") else RankLost(message, **word)
        here = {r: _end_of(pid) for r, (host, pid) in enumerate(places) if host == socket.gethostname()}
        if gone := {r: how for r, how in here.items() if how is not None}:
            return _ended(gone, len(places))
        time.sleep(0.05)
    with contextlib.suppress(RuntimeError):
        if silent := [r for r in range(len(places)) if not store.check([f"waits/{r}"])]:
            hosts = ", ".join(sorted({places[r][0] for r in silent}))
            where = {"rank": silent[0], "node": hosts} if len(silent) == 1 else {}
            return RankLost(f"ranks {silent} of {len(places)} do not answer: look into their logs, on {hosts}", **where)
    return RankLost("the connection to another rank was lost: look into the ranks' logs")


def _ended(gone: dict[int, str], of: int) -> RankLost:
    """Ranks of this node are gone: how, as far as the kernel says it."""
    first, how = next(iter(gone.items()))
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    which = f"rank{'s' * (len(gone) > 1)} {', '.join(map(str, gone))} of {of} ended without a word"
    struck = _oom.words()
    known = ", ".join(filter(None, [causes.end_in_words(how), struck]))
    cause = causes.known("OutOfMemory" if struck else how, "")
    return RankLost(
        f"{which}{known and ': '}{known}", rank=first, node=node, **({} if cause is None else {"cause": cause.name})
    )


def _end_of(pid: int) -> str | None:
    """How a process of this node ended: None while it lives, "" where nobody can say any more."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    if fields[0] != "Z":
        return None
    return causes.end(os.waitstatus_to_exitcode(int(fields[-1])))  # its user may read it until its parent has taken it
