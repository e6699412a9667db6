"""Row 4: of k damaged newest checkpoints the next older one is used, with one warning; of all, the run is refused."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from runyard.runs import journal
from runyard.runs.run import Run
from runyard.training import checkpoint
from tests.support.zygote import First
from tests.torture.ground import discard
from tests.torture.promise import Attacker, Promise, hold

KEPT = 6
SETTINGS = ("epochs=6", f"checkpoint.keep_last={KEPT}", "checkpoint.keep_best=false", "checkpoint.every_s=null")


def damage(folder: Path, rng: random.Random) -> str:
    """One of the ways in which a checkpoint is none any more."""
    state, manifest = folder / "state.pt", folder / "manifest.json"
    way = rng.choice(("flipped", "truncated", "empty", "no state", "no manifest", "manifest"))
    if way == "flipped":
        content = bytearray(state.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        state.write_bytes(content)
    elif way == "truncated":
        with open(state, "r+b") as file:
            file.truncate(rng.randrange(state.stat().st_size))
    elif way == "empty":
        state.write_bytes(b"")
    elif way == "manifest":
        manifest.write_text(rng.choice(("", "{", "null", "[]", '{"step": 1}')))
    else:
        (state if way == "no state" else manifest).unlink()
    return way


def strike(a: Attacker, *, first: First = ()) -> str:
    """The newest k of six, k from none to all."""
    whole = a.ground.undisturbed(1, *SETTINGS)
    run = copied(whole.run, a.ground.scratch())
    found = checkpoint.valid_checkpoints(run.checkpoints)
    k = a.number % (len(found) + 1)
    damaged = found[len(found) - k :]
    for each in damaged:
        damage(each.path, a.rng)
    if k == len(found):
        refused(a, run)
        discard(run)
        return "all damaged"
    before = len(journal.read_journal(run.journal_path)[0])
    started = a.ground.start(run, 1, {0: first})
    codes = started.wait()
    hold(codes == [0], f"{k} damaged: ended with {codes}: {started.said[-300:]}")
    rows = journal.read_journal(run.journal_path)[0][before:]
    start = next(row for row in rows if row["event"] == "start")
    wanted = found[len(found) - k - 1].step
    hold(start["step"] == wanted, f"{k} damaged: went on from step {start['step']}, expected {wanted}")
    told = [row["message"] for row in rows if row["event"] == "warning" and "damaged" in row["message"]]
    hold(len(told) == (k > 0), f"{k} damaged: {len(told)} warnings tell of it")
    hold(all(each.path.name in "".join(told) for each in damaged), f"not all of {k} damaged are named: {told}")
    other = whole.differences(run)
    hold(not other, f"{k} damaged: {other} differ at the end")
    discard(run)
    return f"{k} damaged"


def refused(a: Attacker, run: Run) -> None:
    """Without a checkpoint that reads well it would begin anew, in silence."""
    started = a.ground.start(run, 1)
    codes = started.wait()
    hold(codes == [2], f"all damaged: ended with {codes}, expected a refusal: {started.said[-300:]}")
    hold("Traceback" not in started.said, "the refusal is a traceback")


def copied(run: Run, folder: Path) -> Run:
    shutil.copytree(run.path, folder / run.id, symlinks=True)
    (folder / run.code_path.parent.name).symlink_to(run.code_path.parent)
    return Run.open(folder / run.id)


def without_a_word(a: Attacker) -> str:
    """The newest is passed over, and nobody hears of it."""
    return strike(Attacker(a.ground, a.rng, 1), first=[("tests.torture.corrupt:warn_of_nothing",)])


def warn_of_nothing() -> None:
    """In a rank."""
    from runyard.tracking.recorder import Recorder

    Recorder.warning = lambda self, message: None  # type: ignore[method-assign]


PROMISE = Promise(
    number=4,
    promise="With the newest k checkpoints damaged a run goes on from the next older one, to the same bits, and says "
    "so once; with all damaged it is refused, never begun anew in silence.",
    attack="k from none to all of six, each damaged in a way of its own: a bit, an end, a file missing or empty, a "
    "manifest of rubbish.",
    at_least=28,
    short=2,
    strike=strike,
    control=without_a_word,
    switched_off="nobody is warned",
)
