"""A run's checkpoints on disk: which are valid, and what is wrong with the others.

Torch is imported only when a checkpoint is loaded, since the login node uses this module, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runyard.errors import UserError
from runyard.files import open_regular, read_regular, sha256
from runyard.runs.events import CheckpointEvent
from runyard.runs.journal import read_events
from runyard.runs.run import Run

OLD_PREFIX = ".old-"
State = dict[str, Any]  # tensors and primitives only, so that loading one runs no code


class InvalidCheckpoint(Exception):
    """A checkpoint that cannot be resumed from; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its folder, its step and its score (top-1 at that step, if it was measured).

    ``settings`` are those that decide what is learned (``runyard.runs.identity``), by name; None in an older version's.
    """

    path: Path
    step: int
    score: float | None
    settings: dict[str, object] | None = None

    def load(self) -> State:
        """Load the state onto the CPU. No code in the file is run.

        Raises:
            InvalidCheckpoint: it is not a state that this program saves, although its hash is right.
        """
        import torch

        try:
            with open_regular(self.path / "state.pt") as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch, pickle and zipfile each raise their own for a file that is not a state
            reason = (str(error).splitlines() or [""])[0] if isinstance(error, OSError) else type(error).__name__
            raise InvalidCheckpoint(f"not a state that this program saved: {reason}") from None
        if not isinstance(state, dict) or not isinstance(state.get("network"), dict):
            raise InvalidCheckpoint("not a state that this program saved: it holds no network")
        return state


@dataclass(frozen=True)
class CheckpointSelection:
    """The checkpoint to load, if there is one, and why newer ones were skipped, newest first."""

    checkpoint: Checkpoint | None
    skipped: list[str]

    @property
    def warning(self) -> str | None:
        """What was skipped, as one line; None if nothing was."""
        if not self.skipped:
            return None
        fallback = f"using {_step_name(self.checkpoint.path)}" if self.checkpoint else "restarting from step 0"
        return f"{'; '.join(self.skipped)}: {fallback} instead"


def select_checkpoint(
    run: Run, accept: Callable[[Checkpoint], object] = lambda checkpoint: None
) -> CheckpointSelection:
    """Select the newest valid checkpoint for which ``accept`` does not raise ``InvalidCheckpoint``.

    Raises:
        UserError: there were some, by the journal or on disk, and none of them can be used: a restart from step 0 must
            be requested (``Run.allow_restart_from_scratch``).
    """
    existing = checkpoint_paths(run.checkpoints)
    saved = _journaled_checkpoints(run)
    skipped: list[str] = []
    if saved and saved[-1] > max((_step_name(path) for path in existing), default=""):
        skipped.append(f"{saved[-1]} is missing")
    for path in reversed(existing):
        try:
            checkpoint = read_checkpoint(path)
            accept(checkpoint)
            return CheckpointSelection(checkpoint, skipped)
        except InvalidCheckpoint as error:
            skipped.append(f"{_step_name(path)} is damaged ({error})")
    if saved or (existing and "from_scratch" not in run.record):
        raise UserError(
            f"run {run.id} has no checkpoint left to resume from: {'; '.join(skipped)}",
            "put one back into "
            f"{run.checkpoints}, or restart from step 0: runyard resume {run.cli_reference} --from-scratch",
        )
    return CheckpointSelection(None, skipped)


def _journaled_checkpoints(run: Run) -> list[str]:
    """Return the names of the checkpoints saved since the run last began at step 0, in the order of saving."""
    since_time = run.record.get("from_scratch", 0.0)
    saved = [event for event in read_events(run.journal_path) if isinstance(event, CheckpointEvent)]
    return [event.name for event in saved if event.t > since_time]


def checkpoint_paths(folder: Path) -> list[Path]:
    """Return the folders of all checkpoints by rising step. One that was moved aside counts if it was not replaced."""
    previous = {_step_name(p): p for p in folder.glob(f"{OLD_PREFIX}step_*")}
    current = {p.name: p for p in folder.glob("step_*")}
    return [path for _, path in sorted((previous | current).items())]


def _step_name(path: Path) -> str:
    return path.name.removeprefix(OLD_PREFIX)


def read_checkpoint(path: Path) -> Checkpoint:
    """Verify the checkpoint in this folder by the hash of its state, and return it.

    Raises:
        InvalidCheckpoint: it is incomplete or damaged.
    """
    try:
        manifest = _read_manifest(path)
        if sha256(path / "state.pt") != manifest["sha256"]:
            raise InvalidCheckpoint("its sha256 is not the one it was saved with")
        score = None if manifest["score"] is None else float(manifest["score"])
        return Checkpoint(path, int(manifest["step"]), score, manifest.get("settings"))
    except OSError as error:
        raise InvalidCheckpoint(f"{Path(error.filename or path).name}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidCheckpoint("manifest.json: not written by this program") from None


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest, and compare the state's size with it: older versions recorded none."""
    manifest = json.loads(read_regular(path / "manifest.json"))
    with open_regular(path / "state.pt") as file:
        size = os.fstat(file.fileno()).st_size
    if manifest.get("bytes", size) != size:
        raise InvalidCheckpoint(f"{size} bytes, but {manifest['bytes']} were saved")
    return dict(manifest)


def checkpoint_problem(folder: Path, step: int) -> str | None:
    """Return why the checkpoint of this step cannot be used, judged without reading its state; None if it seems valid.

    For tables of many runs: only ``read_checkpoint`` is certain.
    """
    name = f"step_{step:08d}"
    path = next((path for path in checkpoint_paths(folder) if _step_name(path) == name), None)
    if path is None:
        return f"{name} is missing"
    try:
        _read_manifest(path)
    except (InvalidCheckpoint, OSError, ValueError, TypeError, AttributeError, RecursionError):
        return f"{name} is damaged"
    return None


def valid_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return every checkpoint in ``folder`` whose content matches its manifest, oldest first. Others are skipped."""
    return [c for path in checkpoint_paths(folder) if (c := _read_or_none(path)) is not None]


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest valid checkpoint. The search begins at the newest, so that usually only one is hashed."""
    return next((c for path in reversed(checkpoint_paths(folder)) if (c := _read_or_none(path)) is not None), None)


def _read_or_none(path: Path) -> Checkpoint | None:
    try:
        return read_checkpoint(path)
    except InvalidCheckpoint:
        return None
