"""The run's Weights & Biases record while it trains: a copy of the journal, from rank 0, under the run's own id.

A thread reads the journal and sends what is new. The training wakes it and never waits for it, except at the end and
then not for long: nothing W&B does can stop, hang or slow a training, and what fails becomes a warning. What could not
be sent is sent by the run's next start, or by `runyard sync`.

W&B's helper process ends of the SIGTERM that SLURM sends to a whole step, however it is started: it installs its own
handler over an inherited one and unblocks the signal. So a helper that is gone is replaced, and told again what the
server lacks.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

from runyard.runs import journal
from runyard.runs.journal import Row
from runyard.runs.run import Run
from runyard.tracking.wandb.connection import connection_problem
from runyard.tracking.wandb.record import WandbRecord, first_line, helper_died, teardown

FINISH_TIMEOUT_S = 60.0
INTERRUPTED_TIMEOUT_S = 8.0  # a job that was told to go has little time, and its next start sends the rest
SWEEP_TIMEOUT_S = 25.0  # of a sweep at W&B there is a next start only if W&B has heard that this one was interrupted
ARTIFACTS_TIMEOUT_S = 600.0
MAX_HELPERS = 3  # records opened in one process at most: the first, and those in place of a helper that died


class WandbRun:
    """An open record. Made by ``begin``."""

    def __init__(self, run: Run, facts: dict[str, Any], warn: Callable[[str], None]) -> None:
        self._run, self._facts, self._warn = run, facts, warn
        self._wakeups: queue.SimpleQueue[bool | None] = (
            queue.SimpleQueue()
        )  # None: look; a bool: the end, failed or not
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._interrupted = self._abandoned = False
        self._record: WandbRecord | None = None
        self._thread = threading.Thread(target=self._work, name="W&B", daemon=True)

    @classmethod
    def start(cls, run: Run, facts: dict[str, Any], warn: Callable[[str], None]) -> WandbRun:
        """Start the record, or go on with it after a restart, without waiting for it. ``warn`` is called by ``log``
        and ``finish`` only, in the thread of whoever calls those."""
        begun = cls(run, facts, warn)
        begun._thread.start()
        return begun

    def log(self, event: str, fields: dict[str, Any]) -> None:
        """The journal has a new line."""
        self._interrupted |= event == "stop" and fields.get("reason") == "interrupted"
        if event != "warning":
            self._forward_warnings()
        self._wakeups.put(None)

    def finish(self, failed: bool) -> None:
        """Close the record; gives up in time rather than hold the job."""
        limit_s = ARTIFACTS_TIMEOUT_S if self._run.config.tracking.artifacts else FINISH_TIMEOUT_S
        if self._interrupted:
            limit_s = SWEEP_TIMEOUT_S if self._run.record.get("wandb") else INTERRUPTED_TIMEOUT_S
        self._wakeups.put(failed)
        self._thread.join(limit_s)
        if self._thread.is_alive():
            self._abandoned = True
            self._warnings.put(f"W&B did not finish within {limit_s:g} s; {self._recovery_hint()}")
            teardown(kill=True) if self._record is None else self._record.abandon()
        self._forward_warnings()

    def _forward_warnings(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._warn(self._warnings.get_nowait())

    def _work(self) -> None:
        """The thread: one record after another, until one is closed well or it is of no use to open more."""
        starts = None
        for left in reversed(range(MAX_HELPERS)):
            record = self._record = None
            try:
                starts = _starts(self._rows()) if starts is None else starts
                record = self._record = self._open()
                if record is not None:
                    self._sync_until_closed(record, starts)
                    teardown(kill=False)
                return
            except Exception as error:  # its own, the network's, its helper's: none is worth a training
                if self._abandoned:
                    return
                died = helper_died()
                teardown(kill=True) if record is None else record.abandon()
                if not died or not left:
                    what = "did not start" if record is None else "went wrong"
                    self._warnings.put(f"W&B {what} ({first_line(error)}); {self._recovery_hint()}")
                    return

    def _open(self) -> WandbRecord | None:
        tracking = self._run.config.tracking
        why = connection_problem() if tracking.mode != "offline" else None
        if tracking.mode == "online" and why is not None:
            self._warnings.put(f"W&B did not start ({why}); {self._recovery_hint()}")
            return None
        return WandbRecord(
            self._run,
            online=tracking.mode != "offline" and why is None,
            from_training=True,
            reports_end=True,
            folder=self._run.path,
            facts=self._facts,
            finish_timeout_s=ARTIFACTS_TIMEOUT_S if tracking.artifacts else FINISH_TIMEOUT_S,
            warn=self._warnings.put,
        )

    def _sync_until_closed(self, record: WandbRecord, starts: int) -> None:
        """Send what is in the journal whenever there is news, until the record is closed."""
        failed = None
        while True:
            rows = self._rows()
            if _starts(rows) > starts:  # another process took the run over: the record is its own now
                return record.abandon()
            record.send(rows)
            if failed is not None:
                return record.finish(failed)
            failed = self._wait()

    def _wait(self) -> bool | None:
        """Until there is news. Whatever more has come meanwhile is read with it."""
        news = self._wakeups.get()
        with contextlib.suppress(queue.Empty):
            while news is None:
                news = self._wakeups.get_nowait()
        if news is not None:
            self._wakeups.put(news)  # for the record that replaces this one, if its helper dies while it closes
        return news

    def _rows(self) -> list[Row]:
        return journal.read_journal(self._run.journal_path)[0]

    def _recovery_hint(self) -> str:
        return f"metrics.jsonl holds everything, and `runyard sync {self._run.cli_reference}` sends it"


def _starts(rows: list[Row]) -> int:
    return sum(row["event"] == "start" for row in rows)
