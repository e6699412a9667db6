"""Row 7: a disk that is full or fails costs a save and never the run: what was saved stays, and it can go on."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import subprocess
from pathlib import Path

from runyard.errors import ExitCode
from runyard.runs.run import Run
from runyard.training import checkpoint
from tests.support.zygote import Zygote
from tests.torture.ground import Ground, discard
from tests.torture.killed import KINDS, compare
from tests.torture.promise import Attacker, Promise, Unable, hold

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
CALLS = ("write", "fsync", "rename", "mkdir")
PLACES = ("/checkpoints/", "/metrics.jsonl", "/progress.json", "/predictions.npz", "/lease", "/")


@functools.cache
def faulty(ground: Ground) -> Zygote:
    """Ranks whose calls of the system can fail."""
    library = ground.folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    try:
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    except OSError:
        raise Unable("no gcc") from None
    return ground.within(contextlib.closing(Zygote(LD_PRELOAD=str(library))))


def strike(a: Attacker) -> str:
    if a.number % 10 == 9:
        return small_disk(a)
    return faults(a)


def faults(a: Attacker, *, first: tuple[str, ...] = ()) -> str:
    """From the n-th on, some or all calls of a kind fail, below some path of the run; later they succeed again."""
    kind = KINDS[a.number % len(KINDS)]
    run, call, error = a.ground.run(*kind), CALLS[a.number % len(CALLS)], a.rng.choice(ERRORS)
    place = "/checkpoints/" if call == "mkdir" or first else a.rng.choice(PLACES)
    count = 10**6 if first else a.rng.choice((1, 2, 10**6))
    fault = {
        "FAULT_CALL": call, "FAULT_PATH": f"{run.id}{place}", "FAULT_FROM": str(a.rng.randint(1, 12)),
        "FAULT_COUNT": str(count), "FAULT_ERRNO": str(error),
    }  # fmt: skip
    words = f"{errno.errorcode[error]} at {call}"
    ranks = a.ground.start(run, 2, {0: [first]} if first else {}, zygote=faulty(a.ground), env=fault)
    codes, said = ranks.wait(), ranks.said
    hold(all(code >= 0 for code in codes), f"{words} of {place}: ended with {codes}")
    mendable = error != errno.EIO  # by the user: any other is the machine's, and another start may meet none
    hold("Traceback" not in said or not mendable, f"{words} of {place}: a traceback: {said[-400:]}")
    if codes[0]:
        hold(os.strerror(error) in said, f"{words} of {place}: says nothing of it: {said[-300:]}")
        hold(codes[0] == ExitCode.USER_ERROR or not mendable, f"{words} of {place}: exit {codes[0]}")
    left = checkpoint.newest_checkpoint(run.checkpoints)
    hold(left is not None or count > 1 or call != "fsync" or not run.is_finished, f"{words}: no checkpoint is left")
    a.ground.finish(run, 2)
    compare(a.ground, run, 2, kind)
    discard(run)
    return words


def small_disk(a: Attacker) -> str:
    """A disk of a few MB: refused where it is too small from the first; filled up on the way otherwise."""
    place = a.ground.scratch()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True).returncode:
        raise Unable("no right to mount a tmpfs")
    try:
        refused_at_submit(a, place)
        run = moved(a.ground.run(*KINDS[1]), place)
        with open(place / "ballast", "wb") as file, contextlib.suppress(OSError):
            file.write(bytes(a.rng.randint(7 << 20, (8 << 20) - 40_000)))
        ranks = a.ground.start(run, 2)
        codes, said = ranks.wait(), ranks.said
        hold("Traceback" not in said, f"small disk: a traceback: {said[-300:]}")
        told = "No space left" in said or "MB are free, but a checkpoint needs" in said
        hold(not codes[0] or told, f"small disk: exit {codes[0]} without the reason: {said[-300:]}")
        (place / "ballast").unlink()
        a.ground.finish(run, 2)
        compare(a.ground, run, 2, KINDS[1])
    finally:
        subprocess.run(["umount", "-l", place], check=True)
    return "small disk"


def refused_at_submit(a: Attacker, place: Path) -> None:
    """500 MB are asked for before a run is created."""
    words = ["submit", "--dry-run", *a.ground.words("cluster=slurm"), f"runs_dir={place}/runs"]
    code, said = a.ground.command(*words)
    hold(code == ExitCode.USER_ERROR and "MB free" in said, f"small disk: submit said {said[-300:]}")


def moved(run: Run, place: Path) -> Run:
    code = run.code_path.parent
    shutil.copytree(run.path, place / run.id, symlinks=True)
    discard(run)
    (place / code.name).symlink_to(code)
    return Run.open(place / run.id)


def deaf(a: Attacker) -> str:
    """What a disk says goes unheard: a write that failed counts as written."""
    return faults(Attacker(a.ground, a.rng, 3), first=("tests.torture.full_disk:ignore_errors",))


def ignore_errors() -> None:
    """In a rank: no error of a save reaches anybody."""
    from runyard.training.checkpoint import CheckpointSaver

    CheckpointSaver._write = lambda *_: os.kill(os.getpid(), 11)  # type: ignore[method-assign,assignment]


PROMISE = Promise(
    number=7,
    promise="A disk that is full, over quota or failing never takes a checkpoint that was saved: the run goes on or "
    "ends in one line that says why, and once there is room it goes on to the same bits; too small a disk is refused.",
    attack="ENOSPC, EDQUOT, EIO and EROFS at the n-th write, fsync, rename or mkdir, once, twice or for good, below "
    "any path of the run (LD_PRELOAD); a tmpfs of 8 MB.",
    at_least=30,
    short=2,
    strike=strike,
    control=deaf,
    switched_off="the error of a failed save ends the process without a word",
)
