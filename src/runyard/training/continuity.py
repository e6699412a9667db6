"""What must be as it was when a run goes on, and what may differ if it is said."""

from __future__ import annotations

import json
from pathlib import Path

from runyard.data import manifest
from runyard.data.manifest import Manifest
from runyard.errors import UserError
from runyard.fields import written
from runyard.files import write_atomic
from runyard.learned import differences, learned
from runyard.run import MEND, Run
from runyard.tracking import journal
from runyard.training.checkpoint import Checkpoint
from runyard.training.distributed import Dist


def check_same_data(run: Run, folder: Path, data: Manifest, place: Dist) -> None:
    """A run goes on only with the data it began with; rank 0 notes which that is.

    Raises:
        UserError: a split has another sha256 than when the run began.
    """
    noted, now = run.path / "data.json", manifest.to_dict(data)
    if noted.exists():
        then = manifest.read(noted, MEND)
        changed = [
            s for s, part in then.splits.items() if now["splits"].get(s, {}).get("beton_sha256") != part.beton_sha256
        ]
        if changed:
            raise UserError(
                f"{folder}: {', '.join(changed)} changed since run {run.id} began (sha256 {data.sha256[:8]}, then "
                f"{then.sha256[:8]}): restore the data set it began with, or start a new run"
            )
    elif place.rank == 0:
        write_atomic(noted, json.dumps(now))


def check_same_settings(run: Run, found: Checkpoint | None) -> None:
    """A run goes on only with the settings that decided what its checkpoint has learned: config.yaml may be edited.

    Raises:
        UserError: one differs; it is named with its new and its old value.
    """
    if found is None or found.settings is None:
        return
    now = {name: value for name, value in learned(run.config).items() if name in found.settings}  # an older one has fewer
    for name, (old, new) in differences(found.settings, now).items():
        raise UserError(
            f"{name}={written(new)}: run {run.id} was begun with {written(old)}, and would learn something else; "
            f"put that back into {run.path / 'config.yaml'}, or start a new run"
        )


def another_world(run: Run, place: Dist) -> str | None:
    """In words, that the run goes on with another number of ranks than it last had."""
    rows, _ = journal.read(run.journal_path)
    before = next((row["world_size"] for row in reversed(rows) if row["event"] == "start"), place.world_size)
    if before == place.world_size:
        return None
    same = "the same images meet in the same steps, augmented alike"
    if run.config.sync_batch_norm:
        differs = "sums are taken in another order, so results differ by rounding"
    else:
        differs = (
            "each rank's batch norm sees another part of the batch, so what is learned differs by more than rounding "
            "(sync_batch_norm=true, set from the start, avoids that)"
        )
    return f"going on with {place.world_size} ranks, before with {before}: {same}; {differs}"
