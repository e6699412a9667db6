"""Row 3: a save that is cut off anywhere, or whose bytes change afterwards, leaves the one before it loadable."""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from runyard.runs import saved_checkpoints as saved_state
from runyard.training import checkpoint
from tests.torture.promise import Attacker, Promise, hold

Cut = Callable[[Attacker, Path], str]
CALLS = ("mkdir", "write", "fsync", "replace", "rename", "rmdir", "unlink")


class Gone(BaseException):
    """The process ended here: nothing of it runs any more, no cleaning up either."""


class Calls:
    """Counts what a save asks of the system, and stops all of it at the n-th call of a kind, before or after it.

    ``error``: the call fails with that number, and the process lives on. None: the process ends there.
    """

    def __init__(self, kind: str | None = None, at: int = 0, *, after: bool = False, error: int | None = None) -> None:
        self.kind, self.at, self.after, self.error = kind, at, after, error
        self.counts = dict.fromkeys(CALLS, 0)
        self.dead = False

    def made(self, kind: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self.check()
        self.counts[kind] += 1
        here = self.kind == kind and self.counts[kind] == self.at
        if here and not self.after:
            self.strike()
        result = call(*arguments, **options)
        if here and self.after:
            self.strike()
        return result

    def check(self) -> None:
        if self.dead:
            raise Gone

    def strike(self) -> None:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        self.dead = True
        raise Gone

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        real = {kind: getattr(os, kind) for kind in CALLS if kind != "write"}
        real_open = builtins.open

        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            self.check()
            handle = real_open(file, mode, *arguments, **options)
            return Written(handle, self) if "w" in mode else handle

        try:
            for kind, call in real.items():
                setattr(os, kind, functools.partial(self.made, kind, call))
            builtins.open = opened
            yield
        finally:
            builtins.open = real_open
            for kind, call in real.items():
                setattr(os, kind, call)


class Written:
    """A file open for writing. Of the write at which the process ends, half reaches the disk."""

    def __init__(self, handle: Any, calls: Calls) -> None:
        self._handle, self._calls = handle, calls

    def write(self, content: bytes) -> int:
        if self._calls.kind == "write" and self._calls.counts["write"] + 1 == self._calls.at:
            self._handle.write(content[: len(content) // 2])
            self._handle.flush()
        return int(self._calls.made("write", self._handle.write, content))

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {"step": step, "network": {"w": torch.randn(40, 25, generator=generator)}, "epochs_done": 0}


def saved(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.write_checkpoint(folder, state(step), step, None)


@functools.cache
def moments() -> list[tuple[str, int]]:
    """Each call of each kind that one save makes, where an earlier save of the same step must give way."""
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"torture-{os.getpid()}-moments"
    folder.mkdir()
    try:
        saved(folder, 10, 20)
        calls = Calls()
        with calls():
            saved(folder, 20)
    finally:
        shutil.rmtree(folder)
    return [(kind, n) for kind, count in calls.counts.items() for n in range(1, count + 1)]


def cut(a: Attacker, folder: Path) -> str:
    """The n-th call of a kind is the process's last, or fails."""
    kind, n = moments()[a.number // 2 % len(moments())]
    error = a.rng.choice((None, None, errno.EIO, errno.ENOSPC, errno.EDQUOT))
    calls = Calls(kind, n, after=bool(a.number % 2), error=error)
    saved(folder, 10, 20)
    again = a.rng.random() < 0.5
    with contextlib.suppress(Gone, OSError), calls():
        saved(folder, 20 if again else 30)
    found = checkpoint.newest_checkpoint(folder)
    hold(found is not None, f"{kind} {n}: no checkpoint is left")
    assert found is not None
    hold(found.step in ((20,) if again else (20, 30)), f"{kind} {n}: went back to step {found.step}")
    loads(found)
    saved(folder, 40)  # and the next save succeeds, and clears what the cut left
    newest = checkpoint.newest_checkpoint(folder)
    hold(newest is not None and newest.step == 40, f"{kind} {n}: the next save came to nothing")
    left = [path.name for path in folder.glob(".making-*")]
    hold(not left, f"{kind} {n}: {left} stay for ever")
    return kind


def loads(found: checkpoint.Checkpoint) -> None:
    wanted = state(found.step)["network"]["w"]
    hold(torch.equal(found.load()["network"]["w"], wanted), f"step {found.step} reads as other weights")


def truncated(a: Attacker, folder: Path) -> str:
    """The newest's file ends at some byte: what a disk does that lost power and had promised more."""
    saved(folder, 10, 20)
    file = folder / "step_00000020" / a.rng.choice(("state.pt", "state.pt", "state.pt", "manifest.json"))
    os.truncate(file, a.rng.randrange(file.stat().st_size))
    went_back(folder, f"{file.name} truncated")
    return "truncated"


def flipped(a: Attacker, folder: Path) -> str:
    """One bit of the newest's weights is another."""
    saved(folder, 10, 20)
    file = folder / "step_00000020" / "state.pt"
    content = bytearray(file.read_bytes())
    at = a.rng.randrange(len(content))
    content[at] ^= 1 << a.rng.randrange(8)
    file.write_bytes(content)
    went_back(folder, f"bit in byte {at} flipped")
    return "bit flipped"


def went_back(folder: Path, what: str) -> None:
    found = checkpoint.newest_checkpoint(folder)
    hold(found is not None, f"{what}: no checkpoint is left")
    assert found is not None
    hold(found.step == 10, f"{what}: step {found.step} is believed")
    loads(found)


WAYS: tuple[Cut, ...] = (cut, truncated, cut, truncated, flipped)


def strike(a: Attacker) -> str:
    way = WAYS[a.number % len(WAYS)]
    numbered = Attacker(a.ground, a.rng, a.number * 2 // len(WAYS) if way is cut else a.number)
    return in_folder(way, numbered)


def in_folder(way: Cut, a: Attacker) -> str:
    folder = a.ground.scratch()
    try:
        return way(a, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unverified(a: Attacker) -> str:
    """A bit is flipped where nobody compares the sha256."""
    real = saved_state.sha256
    try:
        saved_state.sha256 = _noted  # type: ignore[assignment]
        return in_folder(flipped, a)
    finally:
        saved_state.sha256 = real


def _noted(path: Path) -> str:
    """What the manifest says, whatever the file holds."""
    return str(json.loads(path.with_name("manifest.json").read_text())["sha256"])


PROMISE = Promise(
    number=3,
    promise="A save that is cut off anywhere, and a checkpoint whose bytes changed afterwards, leave the one before "
    "loadable, and the next save succeeds.",
    attack="The process ends before or after every write, fsync, rename and deletion of a save, with half of the write "
    "on disk; the same calls fail with EIO, ENOSPC, EDQUOT; files truncated at any byte; any bit flipped.",
    at_least=600,
    short=100,
    strike=strike,
    control=unverified,
    switched_off="the sha256 is not compared",
)
