"""What must be as it was when a run goes on, and what may differ if it is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from runyard.config.fields import format_literal
from runyard.data import manifest
from runyard.data.manifest import Manifest, Split
from runyard.errors import UserError
from runyard.files import write_atomic
from runyard.runs import journal
from runyard.runs.identity import changed_settings, identity_settings
from runyard.runs.run import RUN_HINT, Run
from runyard.runs.saved_checkpoints import Checkpoint, InvalidCheckpoint, State, select_checkpoint
from runyard.training import optimizer
from runyard.training.checkpoint import check_finite, check_shape
from runyard.training.distributed.process_group import RankInfo
from runyard.training.evaluation import Evaluation
from runyard.training.train_state import TrainState


def check_same_data(run: Run, folder: Path, data: Manifest, rank_info: RankInfo) -> None:
    """A run goes on only with the data it began with; rank 0 notes which that is.

    Raises:
        UserError: a split, the class names or the normalisation is another than when the run began.
    """
    recorded_manifest = run.path / "data.json"
    if recorded_manifest.exists():
        recorded = manifest.read_manifest(recorded_manifest, RUN_HINT)
        changed = [
            s for s, part in recorded.splits.items() if s not in data.splits or _split_changed(part, data.splits[s])
        ]
        whole = ("classes", "image_size", "mean", "std")
        changed += [name for name in whole if getattr(recorded, name) != getattr(data, name)]
        if changed:
            raise UserError(
                f"{folder}: {', '.join(changed)} changed since run {run.id} began (sha256 {data.sha256[:8]}, then "
                f"{recorded.sha256[:8]}): restore the data set it began with, or start a new run"
            )
    elif rank_info.rank == 0:
        write_atomic(recorded_manifest, json.dumps(manifest.manifest_to_dict(data)))


def _split_changed(recorded: Split, now: Split) -> bool:
    arrays = recorded.arrays_sha256.keys() & now.arrays_sha256.keys()  # a set may have been prepared without
    return recorded.beton_sha256 != now.beton_sha256 or any(
        recorded.arrays_sha256[a] != now.arrays_sha256[a] for a in arrays
    )


def resume_from_checkpoint(
    run: Run, train_state: TrainState, evaluation: Evaluation, samples: dict[str, int], warn: Callable[[str], None]
) -> Checkpoint | None:
    """Give ``train_state`` and ``evaluation`` the state of the newest checkpoint that is whole and fits them.

    None: the run begins at step 0. ``samples`` is how many each split has.

    Raises:
        UserError: no checkpoint is left of those the run had, or one was saved under settings that learn otherwise.
    """

    def restore(checkpoint: Checkpoint) -> None:
        check_same_settings(run, checkpoint)
        state = checkpoint.load()
        try:
            check_train_state(state, train_state)
            evaluation.restore(state.get("evaluation"), samples)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InvalidCheckpoint(f"no state that this program saved: {type(error).__name__}") from None
        train_state.load_state_dict(state)

    choice = select_checkpoint(run, restore)
    if choice.warning is not None:
        warn(choice.warning)
    return choice.checkpoint


def check_train_state(state: State, train_state: TrainState) -> None:
    """See that ``train_state`` can go on from a checkpoint's state.

    Raises:
        Unusable: naming what differs, or is not a finite number.
    """
    like = train_state.state_dict()
    if lacking := sorted(like.keys() - state.keys()):
        raise InvalidCheckpoint(f"it lacks {', '.join(lacking)}")
    for name in like.keys() - {"optimizer", "best"}:  # which fill in the course of training
        check_shape(state[name], like[name], name)
    check_finite(state["network"])
    if not isinstance(state["best"], dict) or not all(isinstance(v, (int, float)) for v in state["best"].values()):
        raise InvalidCheckpoint("best holds no numbers")
    optimizer.check_optimizer_state(train_state.optimizer, state["optimizer"], begun=state["step"] > 0)


def check_same_settings(run: Run, found: Checkpoint | None) -> None:
    """A run goes on only with the settings that decided what its checkpoint has learned: config.yaml may be edited.

    Raises:
        UserError: one differs; it is named with its new and its old value.
    """
    if found is None or found.settings is None:
        return
    # An older version's checkpoint names fewer.
    now = {name: value for name, value in identity_settings(run.config).items() if name in found.settings}
    for name, (old, new) in changed_settings(found.settings, now).items():
        raise UserError(
            f"{name}={format_literal(new)}: run {run.id} was begun with {format_literal(old)}, and would learn "
            f"something else; put that back into {run.path / 'config.yaml'}, or start a new run"
        )


def world_size_warning(run: Run, rank_info: RankInfo) -> str | None:
    """In words, that the run goes on with another number of ranks than it last had."""
    rows, _ = journal.read_journal(run.journal_path)
    before = next((row["world_size"] for row in reversed(rows) if row["event"] == "start"), rank_info.world_size)
    if before == rank_info.world_size:
        return None
    same = "the same images meet in the same steps, augmented alike"
    if run.config.sync_batch_norm:
        differs = "sums are taken in another order, so results differ by rounding"
    else:
        differs = (
            "each rank's batch norm sees another part of the batch, so what is learned differs by more than rounding "
            "(sync_batch_norm=true, set from the start, avoids that)"
        )
    return f"going on with {rank_info.world_size} ranks, before with {before}: {same}; {differs}"
