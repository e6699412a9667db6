"""Copies the journal to Weights & Biases while the run trains: on rank 0, under the run's own id.

A thread reads the journal and sends what is new. The training wakes it and never waits for it, except at the end and
then not for long: nothing W&B does can stop, hang or slow a training, and what fails becomes a warning. What could not
be sent is sent by the run's next start, or by `runyard sync`.

W&B's helper process ends by the SIGTERM that SLURM sends to a whole step, however it is started: it installs its own
handler over an inherited one and unblocks the signal. So a helper that is gone is replaced, and the new one is sent
what the server lacks.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable

from runyard.runs.events import Row, StartEvent
from runyard.runs.journal import JournalReader, read_events
from runyard.runs.run import Run
from runyard.runs.state import JournalState
from runyard.tracking.route import route_to
from runyard.tracking.wandb.connection import base_url, connection_problem
from runyard.tracking.wandb.record import WandbRecord, first_line, helper_died, teardown

FINISH_TIMEOUT_S = 60.0
INTERRUPTED_TIMEOUT_S = 8.0  # a job that was asked to stop has little time, and its next start sends the rest
SWEEP_TIMEOUT_S = 25.0  # a sweep's agent starts the run again only if W&B knows that it was interrupted
ARTIFACTS_TIMEOUT_S = 600.0
MAX_HELPERS = 3  # records opened in one process at most: the first, and those in place of a helper that died


class WandbRun:
    """An open record. Create it by ``start``."""

    def __init__(self, run: Run, metadata: Row, report: Callable[[str, str], None]) -> None:
        self._run, self._metadata, self._report = run, metadata, report
        # None: the journal has news; a bool: the run has ended, and whether it failed.
        self._wakeups: queue.SimpleQueue[bool | None] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()  # a journal event, and its message
        self._interrupted = self._abandoned = False
        self._record: WandbRecord | None = None
        self._thread = threading.Thread(target=self._work, name="W&B", daemon=True)

    @classmethod
    def start(cls, run: Run, metadata: Row, report: Callable[[str, str], None]) -> WandbRun:
        """Start the record, or resume it after a restart, without waiting for it.

        ``report`` gets the event and the message of a line for the journal, a ``warning`` or ``tracking``. It is called
        only by ``log`` and ``finish``, in the thread that calls those.
        """
        started = cls(run, metadata, report)
        started._thread.start()
        return started

    def log(self, event: str, fields: Row) -> None:
        """Wake the thread for the journal's new line, and pass on its messages so far."""
        self._interrupted |= event == "stop" and fields.get("reason") == "interrupted"
        if event not in ("warning", "tracking"):
            self._forward_messages()
        self._wakeups.put(None)

    def finish(self, failed: bool) -> None:
        """Close the record, or give up after a time limit rather than hold the job."""
        limit_s = ARTIFACTS_TIMEOUT_S if self._run.config.tracking.artifacts else FINISH_TIMEOUT_S
        if self._interrupted:
            limit_s = SWEEP_TIMEOUT_S if self._run.record.get("wandb") else INTERRUPTED_TIMEOUT_S
        self._wakeups.put(failed)
        self._thread.join(limit_s)
        if self._thread.is_alive():
            self._abandoned = True
            self._warn(f"W&B did not finish within {limit_s:g} s; {self._recovery_hint()}")
            teardown(kill=True) if self._record is None else self._record.abandon()
        self._forward_messages()

    def _forward_messages(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._report(*self._messages.get_nowait())

    def _warn(self, message: str) -> None:
        self._messages.put(("warning", message))

    def _work(self) -> None:
        """Run in the thread: open one record after another, until one is closed well or another would not help."""
        starts = 0
        for remaining in reversed(range(MAX_HELPERS)):
            record = self._record = None
            try:
                starts = starts or len(JournalState.of(read_events(self._run.journal_path)).starts)
                record = self._record = self._open()
                if record is not None:
                    self._sync_until_closed(record, starts)
                    teardown(kill=False)
                return
            except Exception as error:  # W&B's, the network's, its helper's: none may stop a training
                if self._abandoned:
                    return
                died = helper_died()
                teardown(kill=True) if record is None else record.abandon()
                if not died or not remaining:
                    what = "did not start" if record is None else "went wrong"
                    self._warn(f"W&B {what} ({first_line(error)}); {self._recovery_hint()}")
                    return

    def _open(self) -> WandbRecord | None:
        tracking = self._run.config.tracking
        problem = connection_problem() if tracking.mode != "offline" else None
        if tracking.mode == "online" and problem is not None:
            self._warn(f"W&B did not start ({problem}); {self._recovery_hint()}")
            return None
        if tracking.mode == "auto":
            self._messages.put(("tracking", self._way_text(problem)))
        return WandbRecord(
            self._run,
            online=tracking.mode != "offline" and problem is None,
            from_training=True,
            reports_end=True,
            folder=self._run.path,
            metadata=self._metadata,
            finish_timeout_s=ARTIFACTS_TIMEOUT_S if tracking.artifacts else FINISH_TIMEOUT_S,
            warn=self._warn,
        )

    def _sync_until_closed(self, record: WandbRecord, starts: int) -> None:
        """Send what is in the journal whenever there is news, until the record is closed."""
        failed, reader = None, JournalReader(self._run.journal_path)
        while True:
            events = list(reader.new_events())
            starts -= sum(isinstance(event, StartEvent) for event in events)
            if starts < 0:  # another process took the run over: the record is its own now
                return record.abandon()
            record.send(events)
            if failed is not None:
                return record.finish(failed)
            failed = self._wait()

    def _wait(self) -> bool | None:
        """Wait for a wake-up and take all that are there. Return whether the run failed, None while it trains."""
        wakeup = self._wakeups.get()
        with contextlib.suppress(queue.Empty):
            while wakeup is None:
                wakeup = self._wakeups.get_nowait()
        if wakeup is not None:
            self._wakeups.put(wakeup)  # for the record that replaces this one, if its helper dies while it closes
        return wakeup

    def _way_text(self, problem: str | None) -> str:
        """Say which way ``auto`` goes, and why."""
        if problem is None:
            return f"W&B online: {base_url()} answers {route_to(base_url()).text}"
        return f"W&B offline: {problem}; `runyard sync {self._run.cli_reference}` sends the record"

    def _recovery_hint(self) -> str:
        return f"metrics.jsonl holds everything, and `runyard sync {self._run.cli_reference}` sends it"
