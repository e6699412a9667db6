"""What rank 0 tells the world: the journal, the progress file, Weights & Biases. Other ranks hold a silent one."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from runyard.runs.journal import Journal, Row
from runyard.runs.lease import Lease, LeaseLost
from runyard.runs.narrative import format_row
from runyard.runs.run import Run

PROGRESS_EVERY_S = 0.5


class Recorder:
    """Writes a run's history. With ``active=False`` (ranks other than 0) every call does nothing.

    Once the ``lease`` is another's, each call raises LeaseLost and writes nothing.
    """

    def __init__(self, run: Run, *, active: bool, lease: Lease | None = None) -> None:
        self._run, self._active, self._lease = run, active, lease
        self._journal = Journal(run.journal_path, self.check_lease)
        self._last_progress_time = 0.0
        self._wandb: Any = None

    def check_lease(self) -> None:
        """Before any other write to the run, once it is prepared: raise LeaseLost if another process writes it now."""
        if self._lease is not None:
            self._lease.check()

    def open_wandb(self, facts: Row) -> None:
        """Start, or go on with, the run's W&B record. If W&B fails that is written down, and training goes on."""
        if self._active and self._run.config.tracking.mode != "none":
            from runyard.tracking.wandb.live import WandbRun

            self._wandb = WandbRun.start(self._run, facts, self.warning)

    def log_event(self, event: str, **fields: Any) -> None:
        """One line in the journal, in the log, and in W&B."""
        if self._active:
            self._journal.write(event, **fields)
            if (line := format_row({"event": event, **fields}, self._run.config.epochs)) is not None:
                print(line, flush=True)
            if self._wandb is not None:
                self._wandb.log(event, fields)

    def warning(self, message: str) -> None:
        """Something worth a person's eye that does not stop the run."""
        self.log_event("warning", message=message)

    def progress(self, **fields: Any) -> None:
        """Where the run stands, for whoever watches; at most twice a second, replaced rather than appended."""
        now = time.monotonic()
        if self._active and now - self._last_progress_time >= PROGRESS_EVERY_S:
            self._last_progress_time = now
            path = self._run.path / "progress.json"
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps({"t": time.time(), **fields}))
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
