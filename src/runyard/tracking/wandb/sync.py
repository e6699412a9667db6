"""Uploads to Weights & Biases the journal rows that the server lacks. Safe to repeat and to interrupt.

The server is asked how many points of a run it has; those after them are sent (``history`` says why that is enough).
Offline folders that W&B's client left are not read: a run that was restarted has several, and one can replace another.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from runyard.errors import UserError
from runyard.file_lock import exclusive_lock
from runyard.files import explaining_unreadable
from runyard.runs import journal, lease
from runyard.runs.events import Event, Row, StartEvent, parse_event
from runyard.runs.run import Run
from runyard.runs.state import RunState
from runyard.tracking.wandb.connection import ServerState, server_state
from runyard.tracking.wandb.history import WandbHistory
from runyard.tracking.wandb.record import WandbRecord, first_line, teardown

SEND_TIMEOUT_S = 300.0  # for the server to accept a run's last points, once all are sent
COUNT_TIMEOUT_S = 15.0  # for the server to count the new points
SYNC_POLL_S = 0.5


@dataclass(frozen=True)
class SyncPlan:
    """What has to be sent of one run.

    Attributes:
        run: The run.
        events: Its journal.
        points: How many points the journal has.
        on_server: How many of them the server has.
        status: The run's status by the journal.
        server_status: The run's status at the server, None if it has none.
        damaged_lines: Lines of the journal that cannot be read.
        unreported_failures: Failures in the journal that the server does not know of.
    """

    run: Run
    events: list[Event]
    points: int
    on_server: int
    status: RunState
    server_status: str | None
    damaged_lines: int
    unreported_failures: int

    @property
    def missing(self) -> int:
        return max(0, self.points - self.on_server)

    @property
    def is_complete(self) -> bool:
        """Whether the server has every point and every failure, and the status of a run that was ever started."""
        started = any(isinstance(event, StartEvent) for event in self.events)
        return not self.missing and not self.unreported_failures and (self.server_status == self.status or not started)


def plan_sync(run: Run) -> SyncPlan:
    """Compare a run's journal with what the server has.

    Raises:
        UserError: the journal cannot be read, or there is no key, no server or no answer.
    """
    with explaining_unreadable(run.journal_path):
        rows, damaged_lines = journal.read_journal(run.journal_path)
    history = WandbHistory(run.config)
    events = [parse_event(row) for row in rows]
    history.consume(events)
    server: ServerState = server_state(run)
    unreported = max(0, history.failures - server.failures)
    return SyncPlan(
        run, events, len(history.points), server.points, history.status, server.status, damaged_lines, unreported
    )


def is_sending_live(run: Run) -> bool:
    """Return whether the run's own process is sending now: two senders must not send at once."""
    newest = run.path / "wandb" / "latest-run"
    return (
        newest.exists() and not newest.resolve().name.startswith("offline") and lease.lease_holder(run.path) is not None
    )


def send_missing(plan: SyncPlan, progress: Callable[[int], None], warn: Callable[[str], None]) -> str | None:
    """Send what the server lacks and wait until it has all of it. Returns the address of the run's page.

    ``progress`` is called with the number of points sent so far, and ``warn`` with what else could not be sent.

    Raises:
        UserError: not all of it arrived. Another call continues from there.
    """
    run = plan.run
    with _sync_lock(run), tempfile.TemporaryDirectory(prefix="runyard-sync-") as folder:
        try:
            record = WandbRecord(
                run,
                online=True,
                from_training=False,
                reports_end=plan.status is not RunState.RUNNING,
                folder=Path(folder),
                metadata=_start_metadata(plan.events),
                finish_timeout_s=SEND_TIMEOUT_S,
                warn=warn,
            )
            record.send(plan.events, progress)
            record.finish()
        except UserError:
            raise
        except Exception as error:  # W&B's own, the network's, its helper's
            raise UserError(
                f"W&B: {run.id}: {first_line(error)}", "nothing is lost: run the same command again"
            ) from None
        finally:
            teardown(kill=True)
    _wait_for_arrival(plan)
    return record.url


def _wait_for_arrival(plan: SyncPlan) -> None:
    deadline = time.monotonic() + COUNT_TIMEOUT_S
    while (arrived := server_state(plan.run).points) < plan.points:
        if time.monotonic() > deadline:
            raise UserError(
                f"W&B: {plan.run.id}: {arrived} of {plan.points} points arrived", "run the same command again"
            )
        time.sleep(SYNC_POLL_S)


def _start_metadata(events: list[Event]) -> Row:
    """Return what the newest start recorded about its machine."""
    starts = [event.row for event in events if isinstance(event, StartEvent)]
    return {key: value for key, value in starts[-1].items() if key not in ("event", "t")} if starts else {}


@contextlib.contextmanager
def _sync_lock(run: Run) -> Iterator[None]:
    """Within the block no second `sync` of the same run can start.

    Raises:
        UserError: another one is running.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(run.path / ".sync-lock", wait_s=0))
        except TimeoutError:
            raise UserError(f"run {run.id} is being synced by another process", "wait for it") from None
        except OSError:  # somebody else's run
            pass
        yield
