"""Checkpoints that are whole or absent: write, flush, fsync, verify, rename, fsync the folder. Never delete first."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from runyard.errors import UserError
from runyard.files import sha256, sync_folder, write_atomic
from runyard.run import Run

ASIDE = ".old-"
MOST_FAILED = 3  # saves in a row: then nothing says that the disk will recover
State = dict[str, Any]  # tensors and primitives only, so that reading one runs no code


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that verified: its folder, its step and its score (top-1 at that step, if it was measured).

    ``settings`` are those that decided what was learned (``runyard.learned``), by name; None of an older version.
    """

    path: Path
    step: int
    score: float | None
    settings: dict[str, Any] | None = None

    def load(self) -> State:
        return torch.load(self.path / "state.pt", map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


def write(
    folder: Path,
    state: State,
    step: int,
    score: float | None,
    check: Callable[[], None] = lambda: None,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Save ``state`` as ``folder/step_00000000``. Nothing is left under that name unless it reads back whole.

    ``check`` is asked before anything is deleted or gets its name, and raises if this process may not write any more.
    """
    check()
    for leftover in folder.glob(".making-*"):  # of a kill
        shutil.rmtree(leftover, ignore_errors=True)
    name = f"step_{step:08d}"
    making = folder / f".making-{name}-{secrets.token_hex(4)}"  # no other writer's, were there one
    making.mkdir()
    try:
        _fill(making, state, {"step": step, "score": score, "settings": settings})
        check()
    except BaseException:  # on a full disk what is half-made would keep the next from fitting
        shutil.rmtree(making, ignore_errors=True)
        check()  # who took the run over put it out of the way: then that is what went wrong
        raise
    target = folder / name
    if target.exists():  # the same step again: the old one stands aside, still found, until the new one has its name
        aside = folder / f"{ASIDE}{name}"
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    making.rename(target)
    sync_folder(folder)
    shutil.rmtree(folder / f"{ASIDE}{name}", ignore_errors=True)
    return target


def _fill(making: Path, state: State, manifest: dict[str, Any]) -> None:
    """Write the state and its manifest, and read back what the disk has."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(making / "state.pt", buffer.getvalue())
    with open(making / "state.pt", "rb") as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # read back what the disk has, not what memory has
    digest = sha256(making / "state.pt")
    if digest != hashlib.sha256(buffer.getbuffer()).hexdigest():
        raise OSError(
            f"{making / 'state.pt'} reads back differently from what was written: the disk is failing or full"
        )
    write_atomic(making / "manifest.json", json.dumps({**manifest, "sha256": digest}))


def valid(folder: Path) -> list[Checkpoint]:
    """Every checkpoint in ``folder`` whose content matches its manifest, oldest first. Others are passed over."""
    found = [_read(path) for path in _candidates(folder)]
    return [c for c in found if c is not None]


def newest(folder: Path) -> Checkpoint | None:
    """The newest valid checkpoint, looked for from the end so that only one is hashed as a rule."""
    for path in reversed(_candidates(folder)):
        if (checkpoint := _read(path)) is not None:
            return checkpoint
    return None


def _candidates(folder: Path) -> list[Path]:
    """By rising step. One that stands aside counts where its successor did not come to be."""
    aside = {p.name.removeprefix(ASIDE): p for p in folder.glob(f"{ASIDE}step_*")}
    there = {p.name: p for p in folder.glob("step_*")}
    return [path for _, path in sorted((aside | there).items())]


def _read(path: Path) -> Checkpoint | None:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if sha256(path / "state.pt") != manifest["sha256"]:
            return None
        return Checkpoint(path, int(manifest["step"]), manifest["score"], manifest.get("settings"))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # half-made or damaged: as if it were not there


class Saver:
    """Writes checkpoints beside the training, one at a time, and thins them out.

    ``save`` returns once the state is copied to host memory; an error of the writing is raised by the next call. A disk
    that fails, or has no room, costs two saves in a row and a warning each (``warn``): the training goes on, what was
    saved before stays. The third is raised, and so is every one that is waited for.
    ``check`` is asked before anything gets its name or is deleted, and raises if this process may not write any more.
    ``saved`` is told each step that is on disk and verified, with the seconds from the call of ``save`` to that; both
    are called in the thread that writes.
    """

    def __init__(
        self,
        folder: Path,
        keep_last: int,
        keep_best: bool,
        *,
        check: Callable[[], None] = lambda: None,
        saved: Callable[[int, float], None] = lambda step, seconds: None,
        settings: dict[str, Any] | None = None,
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._settings, self._warn, self._failed = settings, warn, 0
        self._folder, self._keep_last, self._keep_best = folder, keep_last, keep_best
        self._check, self._saved = check, saved
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, state: State, step: int, score: float | None, *, wait: bool) -> None:
        began = time.monotonic()
        self.settle()
        self._pending = self._worker.submit(self._write, _to_host(state), step, score, began, wait)
        if wait:
            self.settle()

    def settle(self) -> None:
        """Wait for the checkpoint being written, and raise what went wrong with it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        try:
            self.settle()
        finally:
            self._worker.shutdown()

    def _write(self, state: State, step: int, score: float | None, began: float, needed: bool) -> None:
        try:
            written = write(self._folder, state, step, score, self._check, self._settings)
        except OSError as error:
            self._failed += 1
            if needed or self._failed == MOST_FAILED:
                raise
            self._warn(
                f"step {step} is not saved ({error.strerror or error}), {self._failed} of {MOST_FAILED} in a row "
                f"before the run ends of it: see to the disk of {self._folder}"
            )
            return
        self._failed = 0
        self._saved(step, time.monotonic() - began)
        self._check()
        for leftover in self._folder.glob(f"{ASIDE}*"):
            shutil.rmtree(leftover)
        paths = sorted(p for p in self._folder.glob("step_*") if p <= written)  # what is later was passed over: damaged
        keep = set(paths[-self._keep_last :])
        if self._keep_best:
            scored = [(s, p) for p in paths if (s := _score(p)) is not None]
            keep |= {max(scored)[1]} if scored else set()
        for path in set(paths) - keep:
            self._check()
            shutil.rmtree(path)


def _score(path: Path) -> float | None:
    try:
        score = json.loads((path / "manifest.json").read_text())["score"]
    except (OSError, ValueError, KeyError):
        return None
    return None if score is None else float(score)


def _to_host(value: Any) -> Any:
    """A copy that later training steps cannot change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {k: _to_host(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_host(v) for v in value]
    return value


def load_network(run: Run, which: Literal["last", "best"] = "last") -> nn.Module:
    """The trained network of ``run``, on the CPU in evaluation mode; the averaged weights if the run keeps an average.

    Raises:
        UserError: the run has no valid checkpoint, or (``best``) none with a score.
    """
    from runyard import models

    found = valid(run.checkpoints)
    if which == "best":
        found = sorted((c for c in found if c.score is not None), key=lambda c: (c.score or 0.0, c.step))
    if not found:
        raise UserError(
            f"run {run.id} has no valid {'scored ' if which == 'best' else ''}checkpoint in {run.checkpoints}: "
            f"train it first (runyard resume {run.reference})"
        )
    state = found[-1].load()
    data = json.loads((run.path / "data.json").read_text())
    network = models.build(run.config.model, len(data["classes"]), int(data["image_size"]))
    network.load_state_dict(state["network"])
    if state["ema"] is not None:
        network.load_state_dict(state["ema"], strict=False)  # averages exist of floating-point entries only
    return network.eval()
