"""Checks on resume: what must be unchanged, and what may differ with a warning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from runyard.config.fields import format_literal
from runyard.data import manifest
from runyard.data.manifest import Manifest, Split
from runyard.errors import UserError
from runyard.files import write_atomic
from runyard.runs.identity import identity_settings
from runyard.runs.journal import read_events
from runyard.runs.record import RUN_HINT
from runyard.runs.run import Run
from runyard.runs.saved_checkpoints import Checkpoint, InvalidCheckpoint, State, select_checkpoint
from runyard.runs.state import JournalState
from runyard.training import optimizer
from runyard.training.checkpoint import check_finite, check_shape
from runyard.training.distributed.launcher import RankInfo
from runyard.training.evaluation import Evaluation
from runyard.training.train_state import TrainState


def check_same_data(run: Run, folder: Path, data: Manifest, rank_info: RankInfo) -> None:
    """Verify that the data is what the run began with; at the first start rank 0 records it.

    Raises:
        UserError: a split, the class names, the image size or the normalization has changed since the run began.
    """
    recorded_manifest = run.path / "data.json"
    if recorded_manifest.exists():
        recorded = manifest.read_manifest(recorded_manifest, RUN_HINT)
        changed = [
            s for s, split in recorded.splits.items() if s not in data.splits or _split_changed(split, data.splits[s])
        ]
        shared = ("classes", "image_size", "mean", "std")  # by all splits
        changed += [name for name in shared if getattr(recorded, name) != getattr(data, name)]
        if changed:
            raise UserError(
                f"{folder}: {', '.join(changed)} changed since run {run.id} began (sha256 {data.sha256[:8]}, then "
                f"{recorded.sha256[:8]})",
                "restore the data set it began with, or start a new run",
            )
    elif rank_info.rank == 0:
        write_atomic(recorded_manifest, json.dumps(manifest.manifest_to_dict(data)))


def _split_changed(recorded: Split, now: Split) -> bool:
    arrays = recorded.arrays_sha256.keys() & now.arrays_sha256.keys()  # a data set may be prepared without arrays
    return recorded.beton_sha256 != now.beton_sha256 or any(
        recorded.arrays_sha256[a] != now.arrays_sha256[a] for a in arrays
    )


def resume_from_checkpoint(
    run: Run, train_state: TrainState, evaluation: Evaluation, samples: dict[str, int], warn: Callable[[str], None]
) -> Checkpoint | None:
    """Load the newest valid and matching checkpoint into ``train_state`` and ``evaluation``, and return it.

    Returns None if the run begins at step 0. ``samples`` is the number of samples of each split.

    Raises:
        UserError: all of the run's checkpoints are missing or damaged, or the newest was saved with settings that
            would train differently.
    """

    def restore(checkpoint: Checkpoint) -> None:
        check_same_settings(run, checkpoint)
        state = checkpoint.load()
        try:
            check_train_state(state, train_state)
            evaluation.restore(state.get("evaluation"), samples)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InvalidCheckpoint(f"not a state that this program saved: {type(error).__name__}") from None
        train_state.load_state_dict(state)

    selection = select_checkpoint(run, restore)
    if selection.warning is not None:
        warn(selection.warning)
    return selection.checkpoint


def check_train_state(state: State, train_state: TrainState) -> None:
    """Verify that ``train_state`` can load a checkpoint's state.

    Raises:
        InvalidCheckpoint: the message names what differs, or is not a finite number.
    """
    expected = train_state.state_dict()
    if missing := sorted(expected.keys() - state.keys()):
        raise InvalidCheckpoint(f"it lacks {', '.join(missing)}")
    for name in expected.keys() - {"optimizer", "best"}:  # these two fill in the course of training
        check_shape(state[name], expected[name], name)
    check_finite(state["network"])
    if not isinstance(state["best"], dict) or not all(isinstance(v, (int, float)) for v in state["best"].values()):
        raise InvalidCheckpoint("best has values that are not numbers")
    optimizer.check_optimizer_state(train_state.optimizer, state["optimizer"], has_stepped=state["step"] > 0)


def check_same_settings(run: Run, checkpoint: Checkpoint) -> None:
    """Verify that the settings that affect learning are those of the checkpoint: config.yaml may have been edited.

    Raises:
        UserError: a setting differs; the message names it with its new and its old value.
    """
    if checkpoint.settings is None:
        return
    for name, value in identity_settings(run.config).items():
        old = checkpoint.settings.get(name, value)  # an older version's checkpoint names fewer
        if value != old:
            raise UserError(
                f"{name}={format_literal(value)}: run {run.id} was begun with {format_literal(old)}, and would train "
                "differently",
                f"put that back into {run.path / 'config.yaml'}, or start a new run",
            )


def world_size_warning(run: Run, rank_info: RankInfo) -> str | None:
    """Return a warning if the run resumes with another number of ranks than it last had, else None."""
    starts = JournalState.of(read_events(run.journal_path)).starts
    previous = starts[-1].world_size if starts else rank_info.world_size
    if previous == rank_info.world_size:
        return None
    same = "each step still has the same images with the same augmentation"
    if run.config.sync_batch_norm:
        differs = "sums are taken in another order, so results differ by rounding"
    else:
        differs = (
            "each rank's batch norm sees another part of the batch, so results differ by more than rounding "
            "(sync_batch_norm=true, set from the start, avoids that)"
        )
    return f"resuming with {rank_info.world_size} ranks, before with {previous}: {same}; {differs}"
