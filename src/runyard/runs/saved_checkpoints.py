"""A run's checkpoints as they lie on its disk: which is whole, and what is to be said of the others.

No torch before one is loaded: the login node asks, too.
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
from runyard.runs import journal
from runyard.runs.run import Run

OLD_PREFIX = ".old-"
State = dict[str, Any]  # tensors and primitives only, so that reading one runs no code


class InvalidCheckpoint(Exception):
    """A checkpoint that cannot be gone on from; the text says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that verified: its folder, its step and its score (top-1 at that step, if it was measured).

    ``settings`` are those that decided what was learned (``runyard.runs.identity``), by name; None of an older version.
    """

    path: Path
    step: int
    score: float | None
    settings: dict[str, Any] | None = None

    def load(self) -> State:
        """What it holds, on the CPU. No code in it is run.

        Raises:
            Unusable: it is not what this program saves: its sum fits, so that was written so.
        """
        import torch

        try:
            with open_regular(self.path / "state.pt") as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch, pickle and zipfile each have their own for what is no state of ours
            reason = (str(error).splitlines() or [""])[0] if isinstance(error, OSError) else type(error).__name__
            raise InvalidCheckpoint(f"no state that this program saved: {reason}") from None
        if not isinstance(state, dict) or not isinstance(state.get("network"), dict):
            raise InvalidCheckpoint("no state that this program saved: it holds no network")
        return state


@dataclass(frozen=True)
class CheckpointSelection:
    """The checkpoint to read, if there is one, and why newer ones are not, in words, newest first."""

    checkpoint: Checkpoint | None
    skipped: list[str]

    @property
    def warning(self) -> str | None:
        """What was passed over, as one line; None if nothing was."""
        if not self.skipped:
            return None
        instead = f"for {_step_name(self.checkpoint.path)}" if self.checkpoint else "to begin again at step 0"
        return f"{'; '.join(self.skipped)}: passed over {instead}"


def select_checkpoint(run: Run, accept: Callable[[Checkpoint], Any] = lambda checkpoint: None) -> CheckpointSelection:
    """The newest checkpoint that is whole and that ``accept`` makes no objection to by raising ``InvalidCheckpoint``.

    Raises:
        UserError: there were some, by the journal or on the disk, and none of them is of use: to begin again from step
            0 is to be asked for (``begin_again``).
    """
    there = checkpoint_paths(run.checkpoints)
    saved = _journaled_checkpoints(run)
    passed_over: list[str] = []
    if saved and saved[-1] > max((_step_name(path) for path in there), default=""):
        passed_over.append(f"{saved[-1]} is missing")
    for path in reversed(there):
        try:
            checkpoint = read_checkpoint(path)
            accept(checkpoint)
            return CheckpointSelection(checkpoint, passed_over)
        except InvalidCheckpoint as error:
            passed_over.append(f"{_step_name(path)} is damaged ({error})")
    if saved or (there and "from_scratch" not in run.record):
        raise UserError(
            f"run {run.id} has no checkpoint left to go on from: {'; '.join(passed_over)}; put one back into "
            f"{run.checkpoints}, or begin again from step 0: runyard resume {run.cli_reference} --from-scratch"
        )
    return CheckpointSelection(None, passed_over)


def _journaled_checkpoints(run: Run) -> list[str]:
    """Names of the checkpoints that were saved since the run last began at step 0, in the order of saving."""
    since = run.record.get("from_scratch", 0.0)
    rows, _ = journal.read_journal(run.journal_path)
    return [str(row.get("name")) for row in rows if row["event"] == "checkpoint" and row.get("t", 0.0) > since]


def checkpoint_paths(folder: Path) -> list[Path]:
    """By rising step. One that stands aside counts where its successor did not come to be."""
    aside = {_step_name(p): p for p in folder.glob(f"{OLD_PREFIX}step_*")}
    there = {p.name: p for p in folder.glob("step_*")}
    return [path for _, path in sorted((aside | there).items())]


def _step_name(path: Path) -> str:
    return path.name.removeprefix(OLD_PREFIX)


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in this folder, its state hashed.

    Raises:
        Unusable: half-made or damaged.
    """
    try:
        manifest = _read_manifest(path)
        if sha256(path / "state.pt") != manifest["sha256"]:
            raise InvalidCheckpoint("its sha256 is another than when it was saved")
        score = None if manifest["score"] is None else float(manifest["score"])
        return Checkpoint(path, int(manifest["step"]), score, manifest.get("settings"))
    except OSError as error:
        raise InvalidCheckpoint(f"{Path(error.filename or path).name}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidCheckpoint("manifest.json: not of this program") from None


def _read_manifest(path: Path) -> dict[str, Any]:
    """What stands beside the state, whose size is compared with it: older versions noted none."""
    manifest = json.loads(read_regular(path / "manifest.json"))
    with open_regular(path / "state.pt") as file:
        size = os.fstat(file.fileno()).st_size
    if manifest.get("bytes", size) != size:
        raise InvalidCheckpoint(f"{size} bytes, and {manifest['bytes']} were saved")
    return dict(manifest)


def checkpoint_problem(folder: Path, step: int) -> str | None:
    """Why the checkpoint of this step is of no use, as far as that shows without reading it; None where it seems whole.

    For tables of many runs: ``read`` tells for certain.
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
    """Every checkpoint in ``folder`` whose content matches its manifest, oldest first. Others are passed over."""
    return [c for path in checkpoint_paths(folder) if (c := _read_or_none(path)) is not None]


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest valid checkpoint, looked for from the end so that only one is hashed as a rule."""
    return next((c for path in reversed(checkpoint_paths(folder)) if (c := _read_or_none(path)) is not None), None)


def _read_or_none(path: Path) -> Checkpoint | None:
    try:
        return read_checkpoint(path)
    except InvalidCheckpoint:
        return None
