"""Writes the journal, the progress file and Weights & Biases on rank 0. On other ranks it does nothing."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

from runyard.runs.events import Row, parse_event
from runyard.runs.journal import Journal
from runyard.runs.lease import Lease, LeaseLost
from runyard.runs.narrative import format_event
from runyard.runs.run import Run

if TYPE_CHECKING:
    from runyard.tracking.wandb.live import WandbRun

PROGRESS_EVERY_S = 0.5


class Recorder:
    """Writes a run's history. With ``active=False`` (ranks other than 0) every call does nothing.

    Once another process holds the ``lease``, each call raises LeaseLost and writes nothing.
    """

    def __init__(self, run: Run, *, active: bool, lease: Lease | None = None) -> None:
        self._run, self._active, self._lease = run, active, lease
        self._journal = Journal(run.journal_path, self.check_lease)
        self._last_progress_time = 0.0
        self._wandb: WandbRun | None = None

    def check_lease(self) -> None:
        """Raise LeaseLost if another process writes the run now. Call it before any other write to a prepared run."""
        if self._lease is not None:
            self._lease.check()

    def open_wandb(self, metadata: Row) -> None:
        """Open the run's W&B record, or resume it. If W&B fails, that becomes a warning and training continues."""
        if self._active and self._run.config.tracking.mode != "none":
            from runyard.tracking.wandb.live import WandbRun

            self._wandb = WandbRun.start(self._run, metadata, self._log_message)

    def log_event(self, event: str, **fields: object) -> None:
        """Write one event to the journal, the log and W&B."""
        if self._active:
            self._journal.write(event, **fields)
            if (line := format_event(parse_event({"event": event, **fields}), self._run.config.epochs)) is not None:
                print(line, flush=True)
            if self._wandb is not None:
                self._wandb.log(event, fields)

    def warning(self, message: str) -> None:
        """Record something that the user should see and that does not stop the run."""
        self._log_message("warning", message)

    def _log_message(self, event: str, message: str) -> None:
        self.log_event(event, message=message)

    def progress(self, **fields: object) -> None:
        """Replace the progress file, which says how far the run is; at most twice a second."""
        now = time.monotonic()
        if self._active and now - self._last_progress_time >= PROGRESS_EVERY_S:
            self._last_progress_time = now
            path = self._run.path / "progress.json"
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary.unlink(missing_ok=True)
            with open(temporary, "x") as file:
                file.write(json.dumps({"t": time.time(), **fields}))
            try:
                self.check_lease()
            except LeaseLost:
                temporary.unlink()
                raise
            os.replace(temporary, path)

    def close(self, failed: bool = False) -> None:
        """Finish the W&B record, within a time limit."""
        if self._wandb is not None:
            self._wandb.finish(failed)
            self._wandb = None
