"""Row 1: whatever rank is killed at whatever moment, the run ends with the weights it would have had."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from runyard.runs.run import Run
from tests.support.settings import PATIENCE_S
from tests.support.zygote import First
from tests.torture.ground import EPOCHS, STEPS_PER_EPOCH, Ground, discard, epochs, typed, until
from tests.torture.promise import Attacker, Promise, hold

WORLDS = (2, 3, 4, 6)
KINDS = (
    ("precision=bf16", "accumulate=2", "ema_decay=0.9", "loss.mixup_alpha=0.2"),
    ("precision=fp32",),
)  # fmt: skip
# Moments by name: the function that marks each, and how often a start may come to it.
MOMENTS = {
    "init": ("runyard.training.trainer:Trainer.__init__", 1),
    "rendezvous": ("runyard.training.distributed.process_group:_wait_for_all", 2),
    "process group": ("torch.distributed:init_process_group", 1),
    "first batch": ("runyard.training.train_state:TrainState.train_step", 1),
    "mid-epoch": ("runyard.training.train_state:TrainState.train_step", EPOCHS * STEPS_PER_EPOCH),
    "epoch end": ("runyard.training.trainer:Trainer.end_epoch", EPOCHS),
    "evaluation": ("runyard.training.train_state:TrainState.logits", 3 * EPOCHS),
    "save": ("runyard.training.checkpoint:_write_and_verify", EPOCHS),
    "purge": ("runyard.training.checkpoint:shutil.rmtree", EPOCHS),
    "journal": ("runyard.runs.journal:Journal.write", 3 * EPOCHS),
    "final": ("runyard.training.trainer:Trainer.finalize", 1),
    "report": ("runyard.training.trainer:_write_report", 1),
}
OF_RANK_0 = ("save", "purge", "journal", "report")


def strike(a: Attacker) -> str:
    return through_the_command_line(a) if a.number % 20 == 19 else through_forks(a)


def through_the_command_line(a: Attacker) -> str:
    """`runyard resume`, a rank of its job killed once some epochs are done, and `runyard resume` again."""
    kind = a.rng.choice(KINDS)
    run, after = a.ground.run(*kind), a.rng.randrange(EPOCHS)
    command = typed("resume", str(run.path))
    until(lambda: (epochs(run) >= after and ranks_of(run)) or command.poll() is not None, "ranks")
    if ranks := ranks_of(run):
        with contextlib.suppress(ProcessLookupError):
            os.kill(a.rng.choice(ranks), signal.SIGKILL)
    said, _ = command.communicate(timeout=PATIENCE_S)
    if not run.is_finished:
        again = typed("resume", str(run.path))
        said, _ = again.communicate(timeout=PATIENCE_S)
        hold(again.returncode == 0, f"resume ended with {again.returncode}: {said[-300:]}")
    hold(run.is_finished, f"it did not finish: {said[-300:]}")
    compare(a.ground, run, 2, kind)
    discard(run)
    return "through the command line"


def ranks_of(run: Run) -> list[int]:
    """Process ids of the tasks of its newest job: the controller's children."""
    jobs = Run.open(run.path).record["jobs"]
    with contextlib.suppress(OSError):
        if jobs:
            controller = jobs[-1]["id"]
            return [int(pid) for pid in Path(f"/proc/{controller}/task/{controller}/children").read_text().split()]
    return []


def through_forks(a: Attacker) -> str:
    """One to three kills of one run, each of a start of its own, then undisturbed to the end."""
    world, kind = WORLDS[a.number % len(WORLDS)], KINDS[a.number // len(WORLDS) % len(KINDS)]
    run, struck = a.ground.run(*kind), []
    for _ in range(a.rng.choice((1, 1, 2, 3))):
        if run.is_finished:
            break
        struck.append(kill(a.ground, a.rng, run, world, kind))
    a.ground.finish(run, world)
    compare(a.ground, run, world, kind)
    discard(run)
    return ", ".join(struck)


def kill(ground: Ground, rng: random.Random, run: Run, world: int, kind: tuple[str, ...]) -> str:
    """Start the run, and kill one rank, or all, on its way. Says when."""
    way = rng.choice((*MOMENTS, "any call", "any call", "any time", "any time"))
    rank = 0 if way in OF_RANK_0 else rng.randrange(world)
    if way in MOMENTS:
        name, most = MOMENTS[way]
        at = ("tests.torture.moments:die_at", name, rng.randint(1, most), rng.choice(("before", "after")))
        start_and_wait(ground, run, world, {rank: [at]}, report=way == "report")
    elif way == "any call":
        call = rng.randint(1, calls(ground, world, kind))
        at = ("tests.torture.moments:signal_at_any_call", call, signal.SIGKILL)
        start_and_wait(ground, run, world, {rank: [at]})
    else:
        ranks = ground.start(run, world)
        time.sleep(rng.uniform(0, ground.undisturbed(world, *kind).seconds))
        for each in rng.choice(([rank], range(world))):
            ranks.signal(each, signal.SIGKILL)
        ranks.wait()
    return way if way not in MOMENTS or rank else f"{way} (rank 0)"


def start_and_wait(ground: Ground, run: Run, world: int, first: dict[int, First], *, report: bool = False) -> None:
    ground.start(run, world, first, report=report).wait()


@functools.cache
def calls(ground: Ground, world: int, kind: tuple[str, ...]) -> int:
    """How many functions rank 0 calls in an undisturbed life."""
    run, file = ground.run(*kind), ground.scratch() / "calls"
    start_and_wait(ground, run, world, {0: [("tests.torture.moments:count_calls", str(file))]})
    discard(run)
    return int(file.read_text())


def compare(ground: Ground, run: Run, world: int, kind: tuple[str, ...]) -> None:
    other = ground.undisturbed(world, *kind).differences(run)
    hold(not other, f"{world} ranks, {kind[0]}: {other} differ from the undisturbed run's")


def without_momentum(a: Attacker) -> str:
    """Killed in mid-run; the next start restores all but the optimizer."""
    run = a.ground.run(*KINDS[1])
    at = ("tests.torture.moments:die_at", MOMENTS["mid-epoch"][0], STEPS_PER_EPOCH + 3, "after")
    start_and_wait(a.ground, run, 2, {1: [at]})
    start_and_wait(a.ground, run, 2, {rank: [("tests.torture.killed:forget_momentum",)] for rank in (0, 1)})
    compare(a.ground, run, 2, KINDS[1])
    return "2 ranks"


def forget_momentum() -> None:
    """In a rank: an optimizer that restores nothing."""
    import torch

    def load_nothing(self: Any, state: Any) -> None:
        pass

    torch.optim.SGD.load_state_dict = load_nothing  # type: ignore[method-assign]


PROMISE = Promise(
    number=1,
    promise="A run of which any rank was killed at any moment ends with the weights, the optimizer state and the "
    "history of the undisturbed run, bit for bit.",
    attack="SIGKILL to one rank or all of 2, 3, 4 and 6: while they start, meet, learn, evaluate, save, thin out "
    "checkpoints, report; at any function call; at any time; up to three times; bf16 and fp32.",
    at_least=200,
    short=2,
    strike=strike,
    control=without_momentum,
    switched_off="the optimizer's state is not restored",
)
