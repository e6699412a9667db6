"""What the journals hold and Weights & Biases lacks, sent: whole and once, however often and wherever it is begun.

The server is asked how many points of a run it has; those after them are sent (wandb_history says why that is enough).
Offline folders that W&B's client left are not read: a run that was restarted has several, and one can replace another.
"""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runyard.errors import UserError
from runyard.files import open_lock
from runyard.runs import journal, lease
from runyard.runs.journal import Row
from runyard.runs.run import Run
from runyard.tracking.wandb.connection import ServerState, server_state
from runyard.tracking.wandb.history import WandbHistory
from runyard.tracking.wandb.record import WandbRecord, first_line, teardown

SEND_TIMEOUT_S = 300.0  # for a run's last points to be taken, once all are handed over
COUNT_TIMEOUT_S = 15.0  # for the server to count what it took
SYNC_POLL_S = 0.5


@dataclass(frozen=True)
class SyncPlan:
    """What is to be sent of one run.

    There are ``points`` in its journal, of which the server has ``on_server``, and ``unreported_failures`` failures, of
    which it has not heard.
    """

    run: Run
    rows: list[Row]
    points: int
    on_server: int
    status: str
    server_status: str | None
    damaged_lines: int
    unreported_failures: int

    @property
    def missing(self) -> int:
        return max(0, self.points - self.on_server)

    @property
    def is_complete(self) -> bool:
        """Nothing is missing, and the server knows how the run stands, if it ever began, and of every failure."""
        begun = any(row["event"] == "start" for row in self.rows)
        return not self.missing and not self.unreported_failures and (self.server_status == self.status or not begun)


def plan_sync(run: Run) -> SyncPlan:
    """Compare a run's journal with what the server has.

    Raises:
        UserError: the journal cannot be read, no key, no server, or nobody who could answer.
    """
    try:
        rows, broken = journal.read_journal(run.journal_path)
    except OSError as error:
        raise UserError(f"{run.journal_path}: cannot read it ({error.strerror})") from None
    history = WandbHistory(run.config)
    history.consume(rows)
    server: ServerState = server_state(run)
    untold = max(0, len(history.failures) - server.failures)
    return SyncPlan(run, rows, len(history.points), server.points, history.status, server.status, broken, untold)


def is_sending_live(run: Run) -> bool:
    """Whether the run's own process is sending right now: two senders at once would be one too many."""
    newest = run.path / "wandb" / "latest-run"
    return (
        newest.exists() and not newest.resolve().name.startswith("offline") and lease.lease_holder(run.path) is not None
    )


def send_missing(what: SyncPlan, progress: Callable[[int], None], warn: Callable[[str], None]) -> str | None:
    """Send it, see that the server has it, and return the address of the run's page. ``progress`` is told points sent.

    Raises:
        UserError: not all of it arrived; begun again, it goes on from there.
    """
    run = what.run
    with _sync_lock(run), tempfile.TemporaryDirectory(prefix="runyard-sync-") as folder:
        try:
            record = WandbRecord(
                run,
                online=True,
                from_training=False,
                reports_end=what.status != "running",
                folder=Path(folder),
                facts=_start_metadata(what.rows),
                finish_timeout_s=SEND_TIMEOUT_S,
                warn=warn,
            )
            record.send(what.rows, progress)
            record.finish()
        except UserError:
            raise
        except Exception as error:  # W&B's own, the network's, its helper's
            raise UserError(f"W&B: {run.id}: {first_line(error)}; nothing is lost: run the same again") from None
        finally:
            teardown(kill=True)
    _wait_for_arrival(what)
    return record.url


def _wait_for_arrival(what: SyncPlan) -> None:
    deadline = time.monotonic() + COUNT_TIMEOUT_S
    while (there := server_state(what.run).points) < what.points:
        if time.monotonic() > deadline:
            raise UserError(f"W&B: {what.run.id}: {there} of {what.points} points arrived: run the same again")
        time.sleep(SYNC_POLL_S)


def _start_metadata(rows: list[Row]) -> dict[str, Any]:
    """What the newest start said of its machine."""
    starts = [row for row in rows if row["event"] == "start"]
    return {key: value for key, value in starts[-1].items() if key not in ("event", "t")} if starts else {}


@contextlib.contextmanager
def _sync_lock(run: Run) -> Iterator[None]:
    """No second `sync` of the same run meanwhile.

    Raises:
        UserError: there is one.
    """
    with contextlib.ExitStack() as held_open:
        try:
            lock = held_open.enter_context(open_lock(run.path / ".sync-lock"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"run {run.id} is being synced by another process: wait for it") from None
        except OSError:  # somebody else's run, or a file system without locks
            pass
        yield
