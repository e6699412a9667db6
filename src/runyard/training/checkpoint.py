"""Checkpoints are complete or absent: write, flush, fsync, verify, rename, fsync the folder; never delete first."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from runyard.errors import UserError
from runyard.files import read_regular, sha256, sync_folder, write_atomic
from runyard.runs import saved_checkpoints as saved
from runyard.runs.run import Run
from runyard.runs.saved_checkpoints import (
    OLD_PREFIX,
    Checkpoint,
    CheckpointSelection,
    InvalidCheckpoint,
    State,
    newest_checkpoint,
    valid_checkpoints,
)

__all__ = [
    "Checkpoint",
    "CheckpointSaver",
    "State",
    "load_network",
    "newest_checkpoint",
    "valid_checkpoints",
    "write_checkpoint",
]

MAX_CONSECUTIVE_FAILURES = 3  # failed saves in a row: after these the disk is unlikely to recover


def write_checkpoint(
    folder: Path,
    state: State,
    step: int,
    score: float | None,
    check_lease: Callable[[], None] = lambda: None,
    settings: dict[str, object] | None = None,
) -> Path:
    """Save ``state`` as ``folder/step_00000000``. That name exists only if the checkpoint reads back completely.

    ``check_lease`` is called before anything is deleted or renamed, and raises if this process may no longer write.
    """
    check_lease()
    for leftover in folder.glob(".making-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    name = f"step_{step:08d}"
    tmp_dir = folder / f".making-{name}-{secrets.token_hex(4)}"  # a name that no other writer uses
    tmp_dir.mkdir()
    try:
        evaluated = (state.get("evaluation") or {}).get("images", 0)  # of an unfinished evaluation
        _write_and_verify(tmp_dir, state, {"step": step, "score": score, "settings": settings, "evaluated": evaluated})
        check_lease()
    except BaseException:  # on a full disk an incomplete checkpoint would leave no room for the next
        shutil.rmtree(tmp_dir, ignore_errors=True)
        check_lease()  # a process that took the run over has moved it away: then that is the error to raise
        raise
    target = folder / name
    if target.exists():  # the same step again: the old one stays findable until the new one has its name
        previous = folder / f"{OLD_PREFIX}{name}"
        shutil.rmtree(previous, ignore_errors=True)
        target.rename(previous)
    tmp_dir.rename(target)
    sync_folder(folder)
    shutil.rmtree(folder / f"{OLD_PREFIX}{name}", ignore_errors=True)
    return target


def check_shape(actual: object, expected: object, where: str) -> None:
    """Verify that ``actual`` has the tensors of ``expected``, by name, shape and dtype, and values of the same types.

    Raises:
        InvalidCheckpoint: the message names the first that differs.
    """
    if isinstance(expected, torch.Tensor):
        if not isinstance(actual, torch.Tensor) or actual.shape != expected.shape or actual.dtype != expected.dtype:
            kind = f"{actual.dtype} {list(actual.shape)}" if isinstance(actual, torch.Tensor) else type(actual).__name__
            raise InvalidCheckpoint(f"{where} is {kind}, expected {expected.dtype} {list(expected.shape)}")
    elif isinstance(expected, dict):
        if not isinstance(actual, dict) or actual.keys() != expected.keys():
            names = (
                sorted(map(str, actual.keys() ^ expected.keys()))
                if isinstance(actual, dict)
                else [type(actual).__name__]
            )
            raise InvalidCheckpoint(f"{where} has other entries than expected: {', '.join(names[:3])}")
        for name, value in expected.items():
            check_shape(actual[name], value, f"{where}.{name}")
    elif isinstance(expected, (list, tuple)):
        if not isinstance(actual, (list, tuple)) or len(actual) != len(expected):
            raise InvalidCheckpoint(f"{where} is not a list of {len(expected)}")
        for index, value in enumerate(expected):
            check_shape(actual[index], value, f"{where}.{index}")
    elif type(actual) is not type(expected):
        raise InvalidCheckpoint(f"{where} is {type(actual).__name__}, expected {type(expected).__name__}")


def check_finite(network: State) -> None:
    """Verify that every number is finite.

    Raises:
        InvalidCheckpoint: the message names the first tensor with a non-finite number.
    """
    for name, value in network.items():
        if not bool(value.isfinite().all()):
            raise InvalidCheckpoint(f"network.{name} has a number that is not finite (NaN or infinity)")


def _write_and_verify(tmp_dir: Path, state: State, manifest: dict[str, object]) -> None:
    """Write the state and its manifest, and verify the state by reading it back from the disk."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(tmp_dir / "state.pt", buffer.getvalue())
    with open(tmp_dir / "state.pt", "rb") as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that it is read from the disk, not from memory
    digest = sha256(tmp_dir / "state.pt")
    if digest != hashlib.sha256(buffer.getbuffer()).hexdigest():
        raise OSError(
            f"{tmp_dir / 'state.pt'} reads back differently from what was written: the disk is failing or full"
        )
    manifest |= {"sha256": digest, "bytes": buffer.getbuffer().nbytes}
    write_atomic(tmp_dir / "manifest.json", json.dumps(manifest))


class CheckpointSaver:
    """Writes checkpoints in a thread beside the training, one at a time, and deletes old ones.

    ``save`` returns once the state is copied to host memory; an error while writing is raised by the next call. If the
    disk fails or is full, two saves in a row are skipped with a warning each (``warn``): the training continues, and
    earlier checkpoints stay. The third failure is raised, and so is every failure of a save that is waited for.
    ``check_lease`` is called before anything is renamed or deleted, and raises if this process may no longer write.
    ``on_saved`` is called with each step that is on disk and verified, and the seconds since the call of ``save``; both
    are called in the writing thread.
    """

    def __init__(
        self,
        folder: Path,
        keep_last: int,
        keep_best: bool,
        *,
        check_lease: Callable[[], None] = lambda: None,
        on_saved: Callable[[int, float], None] = lambda step, seconds: None,
        settings: dict[str, object] | None = None,
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._settings, self._warn, self._failed = settings, warn, 0
        self._folder, self._keep_last, self._keep_best = folder, keep_last, keep_best
        self._check, self._saved = check_lease, on_saved
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, state: State, step: int, score: float | None, *, wait: bool) -> None:
        start_time = time.monotonic()
        self.wait()
        self._pending = self._worker.submit(self._write, _to_host(state), step, score, start_time, wait)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint being written, and raise what went wrong with it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    def _write(self, state: State, step: int, score: float | None, start_time: float, required: bool) -> None:
        try:
            written = write_checkpoint(self._folder, state, step, score, self._check, self._settings)
        except OSError as error:
            self._failed += 1
            error.filename = error.filename or str(self._folder)  # an fsync error names no file
            if required or self._failed == MAX_CONSECUTIVE_FAILURES:
                raise
            self._warn(
                f"step {step} was not saved ({error.strerror or error}), failure {self._failed} in a row; after "
                f"{MAX_CONSECUTIVE_FAILURES} the run ends: check the disk of {self._folder}"
            )
            return
        self._failed = 0
        self._saved(step, time.monotonic() - start_time)
        self._check()
        for leftover in self._folder.glob(f"{OLD_PREFIX}*"):
            shutil.rmtree(leftover)
        paths = sorted(p for p in self._folder.glob("step_*") if p <= written)  # later ones were skipped as damaged
        keep = set(paths[-self._keep_last :])
        if self._keep_best:
            scored = [(s, p) for p in paths if (s := _score(p)) is not None]
            keep |= {max(scored)[1]} if scored else set()
        for path in set(paths) - keep:
            self._check()
            shutil.rmtree(path)


def _score(path: Path) -> float | None:
    try:
        score = json.loads(read_regular(path / "manifest.json"))["score"]
    except (OSError, ValueError, KeyError):
        return None
    return None if score is None else float(score)


def _to_host(value: Any) -> Any:
    """Return a copy in host memory, which later training steps cannot change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {k: _to_host(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_host(v) for v in value]
    return value


def load_network(run: Run, which: Literal["last", "best"] = "last") -> nn.Module:
    """Load the trained network of ``run`` on the CPU, in evaluation mode, with the averaged weights if there are any.

    If a newer checkpoint was skipped, a warning on standard error says so.

    Raises:
        UserError: the run has no valid checkpoint, none with a score (``best``), or its weights are not finite.
    """
    from runyard import models

    data = json.loads(read_regular(run.path / "data.json"))
    network = models.build(run.config.model, len(data["classes"]), int(data["image_size"]))
    expected = network.state_dict()

    def load(checkpoint: Checkpoint) -> None:
        state = checkpoint.load()
        check_shape(state["network"], expected, "network")
        averages = state.get("ema")
        if averages is not None:  # it has floating-point entries only
            check_shape(averages, {name: t for name, t in expected.items() if t.is_floating_point()}, "ema")
        weights = {**state["network"], **(averages or {})}
        try:
            check_finite(weights)
        except InvalidCheckpoint as error:  # not damage on disk: falling back to an older one would hide it
            raise UserError(
                f"{checkpoint.path}: {error}: its predictions would be meaningless",
                "delete it to use an older one, and lower optim.lr if the training diverged",
            ) from None
        network.load_state_dict(weights)

    selection = _best_checkpoint(run, load) if which == "best" else saved.select_checkpoint(run, load)
    if selection.checkpoint is None:
        raise UserError(
            f"run {run.id} has no valid {'scored ' if which == 'best' else ''}checkpoint in {run.checkpoints}",
            f"train it first: runyard resume {run.cli_reference}",
        )
    if selection.warning is not None:
        print(f"runyard: warning: {selection.warning}", file=sys.stderr, flush=True)
    return network.eval()


def _best_checkpoint(run: Run, accept: Callable[[Checkpoint], None]) -> CheckpointSelection:
    """Return the checkpoint with the highest score for which ``accept`` raises nothing; the later of two equal ones."""
    skipped = []
    valid: list[Checkpoint] = []
    for path in reversed(saved.checkpoint_paths(run.checkpoints)):
        try:
            valid.append(saved.read_checkpoint(path))
        except InvalidCheckpoint as error:
            skipped.append(f"{path.name} is damaged ({error})")
    for checkpoint in sorted((c for c in valid if c.score is not None), key=lambda c: (c.score, c.step), reverse=True):
        try:
            accept(checkpoint)
            return CheckpointSelection(checkpoint, skipped)
        except InvalidCheckpoint as error:
            skipped.append(f"{checkpoint.path.name} is damaged ({error})")
    return CheckpointSelection(None, skipped)
