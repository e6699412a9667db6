"""Row 5: a rank that hangs is noticed and named, the job ends, and the run goes on from what was saved."""

from __future__ import annotations

import os
import signal
import time

from runyard.runs.run import Run
from tests.support.zygote import First
from tests.torture.ground import Ground, Ranks, discard, until
from tests.torture.killed import KINDS, compare
from tests.torture.one_writer import stopped
from tests.torture.promise import Attacker, Promise, hold

WORLDS = (2, 3, 4)
TIMEOUT_S = 5  # in place of the two minutes that ranks wait for each other
STEP = "runyard.training.train_state:TrainState.train_step"


def strike(a: Attacker, *, first: First = (("tests.torture.hung:hasty", TIMEOUT_S),)) -> str:
    """A rank is held still, or a read of it never returns; the others must end, and say which it was."""
    world, kind = WORLDS[a.number % len(WORLDS)], KINDS[a.number % len(KINDS)]
    run, rank, call = a.ground.run(*kind), a.rng.randrange(world), a.rng.randint(2, 20)
    way = a.rng.choice(("SIGSTOP", "stuck read"))
    function = "tests.torture.moments:raise_at" if way == "SIGSTOP" else "tests.torture.hung:hang_at"
    at = (function, STEP, call, "before", signal.SIGSTOP) if way == "SIGSTOP" else (function, call)
    ranks = a.ground.start(run, world, {r: [*first, *([at] if r == rank else [])] for r in range(world)})
    named(a.ground, ranks, rank)
    a.ground.finish(run, world)
    compare(a.ground, run, world, kind)
    discard(run)
    return way


def named(ground: Ground, ranks: Ranks, rank: int) -> None:
    """All the others end by themselves, and one of them names the rank that hangs."""
    others = [pid for r, pid in enumerate(ranks.pids) if r != rank]
    try:
        codes = [ground.zygote.wait(pid) for pid in others]
    finally:
        ranks.signal(rank, signal.SIGKILL)
        ground.zygote.wait(ranks.pids[rank])
    hold(all(code > 0 for code in codes), f"the others ended with {codes}")
    said = ranks.said
    hold(f"[{rank}]" in said or f"rank {rank}" in said, f"nobody names rank {rank}: {said[-300:]}")


def hasty(timeout_s: float) -> None:
    """In a rank: wait for the others that long once all have met, in place of minutes."""
    from runyard.training.distributed import process_group

    real = process_group.dist.init_process_group

    def joined(*arguments: object, **options: object) -> None:
        process_group.JOIN_TIMEOUT_S = timeout_s  # type: ignore[attr-defined]
        import datetime

        real(*arguments, **{**options, "timeout": datetime.timedelta(seconds=timeout_s)})

    process_group.dist.init_process_group = joined  # type: ignore[attr-defined]


def hang_at(call: int) -> None:
    """In a rank: at that step it reads from a pipe into which nobody writes."""
    from tests.torture.moments import around

    read_end, _ = os.pipe()

    def read(number: int) -> None:
        if number == call:
            os.read(read_end, 1)

    around(STEP, before=read)


def nobody_looks(a: Attacker) -> str:
    """No time-out and no watch: the others wait for as long as the rank hangs."""
    run: Run = a.ground.run(*KINDS[1])
    at = ("tests.torture.moments:raise_at", STEP, 5, "before", signal.SIGSTOP)
    patient = ("tests.torture.hung:hasty", 86_400)
    ranks = a.ground.start(run, 2, {0: [patient], 1: [patient, at]})
    until(lambda: stopped(ranks.pids[1]), "the rank to hang")
    time.sleep(2 * TIMEOUT_S)
    waits = a.ground.zygote.alive(ranks.pids[0])
    for rank in range(2):
        ranks.signal(rank, signal.SIGKILL)
    ranks.wait()
    discard(run)
    hold(not waits, f"rank 0 waits for it still, after {2 * TIMEOUT_S} s")
    return ""


PROMISE = Promise(
    number=5,
    promise="A rank that hangs is noticed and named, the others end, and the run goes on to the same bits from what "
    "was saved.",
    attack="SIGSTOP to a rank of 2, 3 and 4 at some step; a read that never returns.",
    at_least=10,
    short=1,
    strike=strike,
    control=nobody_looks,
    switched_off="ranks wait for each other without a limit",
)
