"""When a rank ends, the others learn of what: a lost connection alone says nothing that a person could mend."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path

import torch.distributed as dist

from runyard.errors import UserError

LAST_WORD_S = 2.0  # how long a rank that lost a connection looks for who is gone


class RankLost(Exception):
    """Another rank ended, and this one cannot go on. Says which, and of what as far as it can be known."""


def is_lost_connection(error: BaseException) -> bool:
    """Whether this is what a rank meets when another is gone, and no failure of its own."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error))


def tell(store: dist.Store, rank: int, error: BaseException) -> None:
    """The first rank to fail says of what; only the first is heard."""
    word = {"rank": rank, "message": str(error) or type(error).__name__, "user_error": isinstance(error, UserError)}
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
                return (UserError if word["user_error"] else RankLost)(f"rank {word['rank']}: {word['message']}")
        if gone := [r for r, (host, pid) in enumerate(places) if host == socket.gethostname() and not _alive(pid)]:
            return RankLost(
                f"rank{'s' * (len(gone) > 1)} {', '.join(map(str, gone))} of {len(places)} ended without a word: "
                "killed, perhaps for want of memory"
            )
        time.sleep(0.05)
    with contextlib.suppress(RuntimeError):
        if silent := [r for r in range(len(places)) if not store.check([f"waits/{r}"])]:
            hosts = ", ".join(sorted({places[r][0] for r in silent}))
            return RankLost(f"ranks {silent} of {len(places)} do not answer: look into their logs, on {hosts}")
    return RankLost("the connection to another rank was lost: look into the ranks' logs")


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
