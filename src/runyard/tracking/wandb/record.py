"""Opens a run's record at Weights & Biases and brings it up to date with the journal, in training or for `sync`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from runyard.config import schema
from runyard.runs.events import Event, Row, StopEvent
from runyard.runs.run import Run
from runyard.runs.state import RunState
from runyard.tracking.route import export_all_proxy
from runyard.tracking.wandb import files
from runyard.tracking.wandb.agent import clear_client_folder, prepare_environment
from runyard.tracking.wandb.connection import naming_refused_settings, server_state
from runyard.tracking.wandb.history import BEST_BY, STEP_METRICS, Point, WandbHistory

INIT_TIMEOUT_S = 60.0
DIRECTORY_EVERY_S = 60.0  # the journal as a file beside its points, so that a run can be compared while it trains
TITLE_LENGTH = 63  # of an alert, at most
STOPPED_BY_HAND = 255  # the exit code W&B's client itself gives a run that was stopped by hand


class WandbRecord:
    """An open record. Online it continues what the server has of this run; offline it starts a complete new one.

    Attributes:
        points_on_server: How many points the server had when the record was opened.
        points_sent: How many points were sent since.
        url: The address of the run's page, None offline.
    """

    @naming_refused_settings()
    def __init__(
        self,
        run: Run,
        *,
        online: bool,
        from_training: bool,
        reports_end: bool,
        folder: Path,
        metadata: Row,
        finish_timeout_s: float,
        warn: Callable[[str], None],
    ) -> None:
        """Open it.

        Args:
            online: Whether to send to the server; else W&B's client writes files to be sent later.
            from_training: Whether the training itself sends, so that its machine is measured; False for `sync`.
            reports_end: Whether ``finish`` reports how the run ended; else the server believes that it still runs.
            folder: Where W&B's client keeps its own files.
            metadata: What the run runs on.
            finish_timeout_s: How long ``finish`` may wait for the server.
            warn: Called with a message where something besides the curves could not be sent.

        Raises:
            Exception: W&B's own, the network's or its helper's.
        """
        self._client_folder = folder / "wandb"
        prepare_environment(self._client_folder)
        export_all_proxy()
        import wandb

        assignment = run.record.get("wandb") or {}
        if not from_training:
            wandb.setup(wandb.Settings(silent=True))  # else W&B's client prints where it found the key
        tracking = run.config.tracking
        self._run, self._history, self._warn = run, WandbHistory(run.config), warn
        self._record = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            id=run.wandb_id,
            name=run.id,
            dir=str(folder),
            group=tracking.group or run.config.name,
            job_type="train",
            tags=tracking.tags,
            resume="allow" if online else None,
            mode="online" if online else "offline",
            config={
                **schema.config_to_dict(run.config),
                **assignment.get("drawn", {}),  # by the names under which the sweep looks for them
                "machine": metadata,
                "code_sha256": run.record["code_sha256"],
            },
            allow_val_change=True,  # a restart may be on another machine
            settings=wandb.Settings(
                init_timeout=INIT_TIMEOUT_S,
                finish_timeout=finish_timeout_s,
                finish_timeout_raises=True,
                quiet=True,
                silent=not from_training,
                console="off",  # its capture would send every line a program prints through a helper that may be dead
                disable_git=True,
                save_code=False,
                reinit="create_new",
                stop_fn=stop_this_training,
                x_disable_stats=not from_training,
                x_disable_machine_info=not from_training,
                x_save_requirements=from_training,
                x_skip_transaction_log=not from_training,
                x_update_finish_state=reports_end,
                sweep_id=assignment.get("sweep"),
            ),
        )
        self.points_on_server = self._record.starting_step
        if online and (server_points := server_state(run).points) != self.points_on_server:
            raise RuntimeError(
                f"the server has {server_points} points, but W&B's client would continue after {self.points_on_server}"
            )
        self.points_sent = 0
        self.url: str | None = self._record.url if online else None
        self._reported_failures = int(dict(self._record.summary).get("failures", 0)) if online else 0
        self._define()
        if not self.points_on_server:
            self._send_optional("the code", lambda: files.save_code(run, self._record))
        self._save_directory()

    def _define(self) -> None:
        """Put epochs on the x axis. Step, images, training time and W&B's own wall time can be chosen instead."""
        for axis in STEP_METRICS:
            self._record.define_metric(axis, hidden=True)
        self._record.define_metric("*", step_metric="epoch")
        for name in BEST_BY:
            self._record.define_metric(name, step_metric="epoch", summary="none")

    def send(self, events: Iterable[Event], progress: Callable[[int], None] = lambda sent: None) -> None:
        """Send what the server lacks of the journal's next ``events``: points, log lines, an alert for a failure."""
        self._history.consume(events)
        points = self._history.points
        for index in range(self.points_on_server + self.points_sent, len(points)):
            self._point(points[index])
            self.points_sent += 1
            progress(self.points_sent)
        if self._history.lines:
            self._record.write_logs("\n".join(self._history.lines))
            self._history.lines = []
        if time.monotonic() - self._directory_saved > DIRECTORY_EVERY_S:
            self._save_directory()
        if self._history.failures > self._reported_failures:
            self._reported_failures = self._history.failures
            self._record.summary["failures"] = self._reported_failures
            end = self._history.journal.stop
            # Not of a failure from which the run has restarted.
            if end is not None and self._history.status is RunState.FAILED:
                message = end.message or "without a message"
                self._record.alert(alert_title(self._run, end), f"{message}\n\nrun {self._run.id}", level="ERROR")

    def _point(self, point: Point) -> None:
        """Log one line of history. Never pass step=: after a restart W&B would drop lower steps."""
        if point.lines:
            self._record.write_logs("\n".join(point.lines))
        values: Row = {**point.values}
        if point.final:
            self._send_optional("the tables", lambda: values.update(files.final_tables(self._run)))
            self._send_optional("the tables", lambda: self._record.log(values)) or self._record.log(point.values)
        else:
            self._record.log(values)
        self._record.summary.update(point.summary)

    def _save_directory(self) -> None:
        self._directory_saved = time.monotonic()
        self._send_optional("the run's files", lambda: files.save_directory(self._run, self._record))

    def _send_optional(self, what: str, send: Callable[[], object]) -> bool:
        """Send something that the curves do not need. Return whether that succeeded."""
        try:
            send()
        except Exception as error:  # a picture, or what W&B's client and its server disagree on
            if helper_died():  # and took the record with it
                raise
            self._warn(f"W&B did not accept {what} ({first_line(error)})")
            return False
        return True

    def finish(self, failed: bool = False) -> None:
        """Close the record as the journal says the run ended.

        Raises:
            Exception: not all of it reached the server in time.
        """
        end = self._history.journal.stop
        reason = "failed" if failed and end is None else str(self._history.status)
        self._record.summary["status"] = reason
        self._save_directory()
        if reason == "finished" and self._run.config.tracking.artifacts:
            self._send_optional("the checkpoints", lambda: files.log_checkpoints(self._run, self._record))
        stopped_by_user = end is not None and end.cause == "TERM"
        if reason == "interrupted" and not stopped_by_user:
            self._record.mark_preempting()
        code = {"finished": 0, "running": 0, "interrupted": STOPPED_BY_HAND if stopped_by_user else 1}.get(reason, 1)
        self._record.finish(exit_code=code)
        clear_client_folder(self._client_folder)  # offline, too: `sync` does not read the copies

    def abandon(self) -> None:
        """Leave the record as it is; the next start continues it."""
        kill_helpers()
        checker = getattr(self._record, "_run_status_checker", None)
        if checker is not None:  # else its thread dies with the helper, with a traceback in the job's log
            with contextlib.suppress(Exception):
                checker.stop()
        teardown(kill=True)
        clear_client_folder(self._client_folder)


def alert_title(run: Run, stop: StopEvent) -> str:
    """Return the title of the alert for a failure: the experiment, and what happened to it."""
    what = "given up" if stop.given_up else "diverged" if stop.failure.exception == "DivergenceError" else "failed"
    return f"{run.config.name}: {what}"[:TITLE_LENGTH]


def first_line(error: BaseException) -> str:
    """Return an error of W&B's in one line of at most 200 characters."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def stop_this_training() -> None:
    """Answer W&B's Stop button: save and stop as on SIGTERM if this program handles it, else stop as by Ctrl-C."""
    handled = signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN, None)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM if handled else signal.SIGINT)


def teardown(*, kill: bool) -> None:
    """End W&B's helper, so that the next record starts another. Without ``kill`` it first writes all it has."""
    if kill:
        kill_helpers()
    if (wandb := sys.modules.get("wandb")) is not None:
        with contextlib.suppress(Exception, SystemExit):  # after a helper's bad end W&B's client would end this program
            wandb.teardown()


def kill_helpers() -> None:
    for helper in helpers():
        with contextlib.suppress(ProcessLookupError):
            os.kill(helper, signal.SIGKILL)


def helper_died() -> bool:
    """Return whether the helper is gone, or ends within a second: it closes its connection before it ends."""
    deadline = time.monotonic() + 1
    while helpers():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def helpers() -> list[int]:
    """Return the pids of W&B's helper processes that this process started and that are alive."""
    pids = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, fields = status.read_text().partition("(")[2].rpartition(")")
            state, parent = fields.split()[:2]
            if name == "wandb-core" and state != "Z" and int(parent) == os.getpid():
                pids.append(int(status.parent.name))
    return pids
