"""When a rank ends, the others learn of what: a lost connection alone says nothing that a person could mend."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from pathlib import Path

import torch.distributed as dist

from runyard.errors import UserError
from runyard.stopping import Stop, Stopped
from runyard.training.heartbeat import describe

LAST_WORD_S = 2.0  # how long a rank that lost a connection looks for who is gone
ANSWER_S = 5.0  # and how long for an answer of the store, which hangs where rank 0 does
# What gloo says where another rank is gone or late. All else that it says is a failure of its own.
LOST = re.compile(
    r"closed by peer|reset by peer|broken pipe|timed? ?out|refused|no route to host|caused pair closure", re.IGNORECASE
)


class RankLost(Exception):
    """Another rank ended, and this one cannot go on. Says which, and of what as far as it can be known."""


def is_lost_connection(error: BaseException) -> bool:
    """Whether this is what a rank meets when another is gone, and no failure of its own."""
    said = str(error)
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and "gloo" in said and LOST.search(said) is not None
    )


def tell(store: dist.Store, rank: int, error: BaseException) -> None:
    """The first rank to fail says of what; only the first is heard."""
    word = {
        "rank": rank,
        "message": str(error) or type(error).__name__,
        "user_error": isinstance(error, UserError),
        "stop": int(error.stop) if isinstance(error, Stopped) else 0,
    }
    with contextlib.suppress(RuntimeError):  # rank 0 kept the store, and is gone
        store.compare_set("failed", "", json.dumps(word))


def told(store: dist.Store) -> UserError | RankLost | Stopped | None:
    """What the first rank to fail said, None where none has."""
    if not store.check(["failed"]):
        return None
    word = json.loads(store.get("failed"))
    if word["stop"]:
        return Stopped(Stop(word["stop"]))
    return (UserError if word["user_error"] else RankLost)(f"rank {word['rank']}: {word['message']}")


def ended(notes: Path) -> RankLost | None:
    """Who has ended, by what led this start's ranks and has seen them end (cluster/controller.py); None: nobody."""
    with contextlib.suppress(OSError, ValueError):
        word = json.loads(notes.read_text().splitlines()[0])
        return RankLost(f"rank {word['rank']} {word['message']}")
    return None


def first_cause(
    store: dist.Store, places: list[tuple[str, int]], rank: int, error: BaseException, notes: Path
) -> UserError | RankLost | Stopped:
    """What the others say they failed of, or who of them is gone without a word or does not answer; else ``error``.

    Rank 0 has the store, and stays until the others who look into it have seen what they need: they may be slower. It
    may also be the one that hangs, and the store with it: so a thread asks, for which nobody waits longer.
    """
    found: list[UserError | RankLost | Stopped] = []
    asking = threading.Thread(
        target=lambda: found.append(_found(store, places, rank, error, notes)), name="last word", daemon=True
    )
    asking.start()
    asking.join(LAST_WORD_S + ANSWER_S)
    if not found:
        return RankLost(f"rank 0 of {len(places)} does not answer: look into its log, on {places[0][0]}")
    with contextlib.suppress(RuntimeError):
        store.set(f"knows/{rank}", "")
        looking = [r for r in range(len(places)) if store.check([f"waits/{r}"])] if rank == 0 else []
        deadline = time.monotonic() + LAST_WORD_S
        while looking and not store.check([f"knows/{r}" for r in looking]) and time.monotonic() < deadline:
            time.sleep(0.05)
    return found[0]


def _found(
    store: dist.Store, places: list[tuple[str, int]], rank: int, error: BaseException, notes: Path
) -> UserError | RankLost | Stopped:
    deadline = time.monotonic() + LAST_WORD_S
    with contextlib.suppress(RuntimeError):
        store.set(f"waits/{rank}", "")
    while time.monotonic() < deadline:
        with contextlib.suppress(RuntimeError):
            if (cause := told(store)) is not None:
                return cause
        if (lost := ended(notes)) is not None:
            return lost
        if gone := [r for r, (host, pid) in enumerate(places) if host == socket.gethostname() and not _alive(pid)]:
            return RankLost(
                f"rank{'s' * (len(gone) > 1)} {', '.join(map(str, gone))} of {len(places)} ended without a word: "
                "killed, perhaps for want of memory"
            )
        time.sleep(0.05)
    with contextlib.suppress(RuntimeError):
        if silent := [r for r in range(len(places)) if not store.check([f"waits/{r}"])]:
            hosts = ", ".join(sorted({places[r][0] for r in silent}))
            stand = "".join(f"; {words}" for r in silent if (words := describe(store, r)))
            return RankLost(f"ranks {silent} of {len(places)} do not answer: look into their logs, on {hosts}{stand}")
    return RankLost(f"the connection to another rank was lost ({in_short(error)}): look into the ranks' logs")


def in_short(error: BaseException) -> str:
    """What gloo or NCCL said, in one line and without the place in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if line.startswith("Last error")), "") or (lines or [type(error).__name__])[0]
    return re.sub(r"^\[[^]]*\]\s*|\. This may indicate.*$", "", line)


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
