"""Row 2: whoever is asked to stop, whenever: all ranks stop after the same step, saved."""

from __future__ import annotations

import os
import signal
import time

from runyard.runs import journal
from runyard.runs.run import Run
from runyard.training import checkpoint
from tests.support.settings import PATIENCE_S
from tests.support.zygote import First
from tests.torture.ground import EPOCHS, STEPS_PER_EPOCH, Ranks, discard, epochs, typed, until
from tests.torture.killed import KINDS, WORLDS, compare
from tests.torture.promise import Attacker, Promise, hold

STEP = "runyard.training.train_state:TrainState.train_step"
MOMENTS = (
    STEP,
    STEP,
    STEP,
    "runyard.training.trainer:Trainer.end_epoch",
    "runyard.training.train_state:TrainState.logits",
    "runyard.training.checkpoint:_write_and_verify",
    "runyard.training.trainer:Trainer.__init__",
)
TO_RANKS = (signal.SIGTERM, signal.SIGUSR2)
TO_COMMAND = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGUSR1)


def strike(a: Attacker) -> str:
    return to_command(a) if a.number % 20 == 19 else to_ranks(a)


def to_ranks(a: Attacker) -> str:
    """One rank hears of it, or all do, once or twice, at a moment of its life or at any time."""
    world, kind = WORLDS[a.number % len(WORLDS)], KINDS[a.number // len(WORLDS) % len(KINDS)]
    run, number = a.ground.run(*kind), a.rng.choice(TO_RANKS)
    first, words = steps_noted(run, world), f"{number.name} to one"
    if a.rng.random() < 0.3:
        ranks = a.ground.start(run, world, first)
        words = f"{number.name} to all"
        time.sleep(a.rng.uniform(0, a.ground.undisturbed(world, *kind).seconds))
        for _ in range(a.rng.choice((1, 2))):
            for rank in range(world):
                ranks.signal(rank, number)
    else:
        name = a.rng.choice(MOMENTS)
        rank = 0 if name.endswith("_fill") else a.rng.randrange(world)
        call = a.rng.randint(1, EPOCHS * (STEPS_PER_EPOCH if name is STEP else 1))
        at = ("tests.torture.moments:raise_at", name, call, a.rng.choice(("before", "after")), number)
        ranks = a.ground.start(run, world, {**first, rank: [*first[rank], at]})
    codes = ranks.wait()
    stopped_well(run, ranks, codes)
    a.ground.finish(run, world)
    compare(a.ground, run, world, kind)
    discard(run)
    return words


def steps_noted(run: Run, world: int) -> dict[int, First]:
    """Each rank notes the step it comes to."""
    return {rank: [("tests.torture.stopped:note_steps", f"{run.path}/step-{rank}")] for rank in range(world)}


def note_steps(file: str) -> None:
    """In a rank: keep its step where it can be read when it has ended."""
    from runyard.data.loading.batch import Batch
    from runyard.training.train_state import TrainState

    real, notes = TrainState.train_step, open(file, "w")  # noqa: SIM115  as long as the rank lives

    def noted(self: TrainState, micro_batches: list[Batch]) -> None:
        real(self, micro_batches)
        notes.seek(0)
        notes.write(str(self.step))
        notes.flush()

    TrainState.train_step = noted  # type: ignore[method-assign]


def stopped_well(run: Run, ranks: Ranks, codes: list[int]) -> None:
    """All ended well, after the same step, and that step is saved; or the run was finished before it heard."""
    hold(set(codes) == {0}, f"ranks ended with {codes}: {ranks.said[-500:]}")
    rows, broken = journal.read_journal(run.journal_path)
    hold(broken == 0 and rows[-1]["event"] == "stop", f"the journal ends with {rows[-1:]}")
    if run.is_finished:
        return
    hold(rows[-1]["reason"] == "interrupted", f"it ended as {rows[-1]['reason']}: {rows[-1]['message']}")
    steps = {int(file.read_text() or 0) for file in run.path.glob("step-*")}
    found = checkpoint.newest_checkpoint(run.checkpoints)
    saved = found.step if found is not None else 0
    hold(len(steps) <= 1, f"ranks stopped at steps {sorted(steps)}")
    hold(not steps or steps == {saved}, f"stopped at step {steps}, and step {saved} is saved")


def to_command(a: Attacker) -> str:
    """The command line in a terminal, with a job of two ranks, and its controller are what is told."""
    run, number = a.ground.run("epochs=100000"), a.rng.choice(TO_COMMAND)
    command = typed("resume", str(run.path))
    try:
        until(lambda: epochs(run) or command.poll() is not None, "an epoch")
        controller = a.rng.random() < 0.5
        target = int(Run.open(run.path).record["jobs"][-1]["id"]) if controller else command.pid
        words = f"{number.name} to the {'controller' if controller else 'command'}"
        os.kill(target, number)
        if number == signal.SIGUSR1 or (controller and number == signal.SIGUSR2):  # no wish to stop, or not theirs
            more = epochs(run) + 3
            until(lambda: epochs(run) > more or command.poll() is not None, "more epochs, or the end")
            if command.poll() is None:
                command.send_signal(signal.SIGTERM)
        elif a.rng.random() < 0.3:
            os.kill(target, number)
        said, _ = command.communicate(timeout=PATIENCE_S)
    finally:
        command.kill()
    hold(command.returncode == 130, f"{words}: the command ended with {command.returncode}: {said[-300:]}")
    last = journal.read_journal(run.journal_path)[0][-1]
    hold((last["event"], last.get("reason")) == ("stop", "interrupted"), f"{words}: the journal ends with {last}")
    discard(run)
    return words


def each_for_itself(a: Attacker) -> str:
    """The ranks do not tell each other: the one that hears stops alone."""
    run = a.ground.run(*KINDS[1])
    first = steps_noted(run, 2)
    at = ("tests.torture.moments:raise_at", STEP, 5, "after", signal.SIGTERM)
    deaf = (("tests.torture.stopped:without_a_vote",), ("tests.torture.hung:hasty", 5))
    ranks = a.ground.start(run, 2, {0: [*first[0], *deaf], 1: [*first[1], *deaf, at]})
    stopped_well(run, ranks, ranks.wait())
    return ""


def without_a_vote() -> None:
    """In a rank: what it wants is what it takes for agreed."""
    from runyard.training.distributed.process_group import Consensus

    Consensus.exchange = lambda self, flags: flags  # type: ignore[method-assign,assignment]


PROMISE = Promise(
    number=2,
    promise="Asked to stop at any moment, by a signal to one rank, to all, to the command or to its controller, all "
    "ranks stop after one and the same step, which is saved.",
    attack="TERM and USR2 to one rank or all of 2, 3, 4 and 6, once or twice, while they start, learn, evaluate, save; "
    "TERM, USR2, INT and USR1 to the command line and to the controller of its job.",
    at_least=200,
    short=2,
    strike=strike,
    control=each_for_itself,
    switched_off="ranks do not vote",
)
