"""A run's summary, read fast enough for a table of a thousand runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from runyard.errors import UserError
from runyard.files import open_within, read_within
from runyard.runs import journal, lease, saved_checkpoints
from runyard.runs.journal import Row
from runyard.runs.lease_holder import LeaseHolder
from runyard.runs.run import RUN_FORMAT, RUN_HINT, check_record

# How the most frequent lines of the journal begin: they are parsed only when they are needed.
DEFERRED_EVENTS = {b'{"event": "epoch"': "epoch", b'{"event": "checkpoint"': "checkpoint"}
LOG_TAIL_BYTES = 4096


@dataclass
class RunSummary:
    """A run's record, journal and progress.

    Attributes:
        path: The run's directory.
        record: ``run.json``.
        rows: The journal's rows except those of epochs and checkpoints.
        progress: ``progress.json``, or an empty one.
    """

    path: Path
    record: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    progress: dict[str, Any] = field(default_factory=dict)
    _lines: dict[str, list[bytes]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return str(self.record["id"])

    @property
    def journal_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def reference(self) -> str:
        """What names this run on a command line in this directory."""
        return self.id if self.path == Path("runs", self.id).absolute() else str(self.path)

    @property
    def starts(self) -> list[Row]:
        return [row for row in self.rows if row["event"] == "start"]

    @property
    def last_event(self) -> Row:
        """The newest row that changes the run's status (``start``, ``stop`` or ``requeue``), or an empty one."""
        return next((row for row in reversed(self.rows) if row["event"] in ("start", "stop", "requeue")), {"event": ""})

    @property
    def job(self) -> dict[str, Any]:
        """The newest job: from the record, or from the journal if another command submitted it to SLURM.

        A SLURM job in which a local job was started does not count: there W&B's agent may run another run next.
        """
        recorded: dict[str, Any] = self.record["jobs"][-1] if self.record["jobs"] else {}
        start = next(iter(reversed(self.starts)), {})
        has_slurm_id = re.fullmatch(r"[0-9]+(_[0-9]+)?", str(start.get("job_id")))
        is_slurm_job = has_slurm_id and start.get("launcher") != "submitit, local"
        if is_slurm_job and start["t"] > recorded.get("submitted", 0) and start["job_id"] != recorded.get("id"):
            fields = {"launcher": "slurm", "submitted": start["t"], "nodes": start.get("nodes")}
            return {"id": str(start["job_id"])} | fields
        return recorded

    @property
    def pending_submission(self) -> dict[str, Any] | None:
        """A submission that was begun and has no job yet, by the record; else None."""
        submission: dict[str, Any] | None = self.record.get("submission")
        return submission

    @property
    def slurm_jobs(self) -> list[str]:
        """Ids of its jobs on SLURM, oldest first, including one that another command submitted."""
        recorded = [job for job in self.record["jobs"] if job.get("launcher") == "slurm"]
        ids = [str(job["id"]) for job in recorded]
        return ids if not self.on_slurm or self.job["id"] in ids else [*ids, str(self.job["id"])]

    @property
    def on_slurm(self) -> bool:
        return self.job.get("launcher") == "slurm"

    @property
    def end_recorded(self) -> bool:
        """Whether the journal ends with a ``stop`` row, written after the newest job was submitted."""
        return self.last_event["event"] == "stop" and self.last_event["t"] >= self.job.get("submitted", 0)

    @property
    def finished_for_good(self) -> bool:
        """Whether the run finished and nothing was submitted since: SLURM need not be asked."""
        return self.end_recorded and self.last_event.get("reason") == "finished"

    @property
    def epochs(self) -> list[Row]:
        """The ``epoch`` rows; of a run with a ``final`` row only the newest."""
        return journal.epochs(_parsed(self._lines.get("epoch", [])))

    @property
    def last_checkpoint_step(self) -> int | None:
        """Step of the newest saved checkpoint by the journal, or None."""
        rows = _parsed(self._lines.get("checkpoint", []))
        return int(rows[-1]["step"]) if rows else None

    @property
    def checkpoint_warning(self) -> str:
        """A clause that says if the newest checkpoint is missing or damaged; empty if it seems valid or none exists."""
        problem = (
            None
            if self.last_checkpoint_step is None
            else saved_checkpoints.checkpoint_problem(self.path / "checkpoints", self.last_checkpoint_step)
        )
        return f", but {problem}" if problem else ""

    def logs(self, job: dict[str, Any], stream: str) -> dict[int, BinaryIO]:
        """Open the logs of the tasks of a job of this run, by rank. ``stream`` is ``out`` or ``err``."""
        inside, folder = os.path.realpath(self.path), str(job.get("logs", "slurm"))
        if folder.startswith("../"):  # together with the logs of its sweep's other runs
            inside, folder = os.path.dirname(inside), folder.removeprefix("../")
        name = re.compile(rf"{re.escape(str(job.get('id')))}_(\d{{1,9}})_log\.{stream}")
        opened = {}
        for path in sorted(Path(inside, folder).glob(f"*_log.{stream}")):
            if match := name.fullmatch(path.name):
                with contextlib.suppress(OSError):  # deleted meanwhile; or a link that leads elsewhere
                    opened[int(match[1])] = open_within(Path(inside), f"{folder}/{path.name}")
        return dict(sorted(opened.items()))

    def last_error_line(self) -> str | None:
        """Return the last line of an error log of the newest job, preferably one of runyard's own messages."""
        logs = self.logs(self.job, "err").values()
        lines = [[line for line in _read_tail(log).splitlines() if line.strip()] for log in logs]
        # srun only reports that it ends the tasks
        tasks = [[line for line in log if not line.startswith("srun: ")] for log in lines]
        last_lines = [line for log in (tasks if any(tasks) else lines) for line in log[-1:]]
        own = [line.removeprefix("runyard: ") for line in last_lines if line.startswith("runyard: ")]
        return next(iter([*own, *last_lines]), None)

    def local_pid(self) -> int | None:
        """Return the id of the process on this machine that controls the run, if it is alive and really this run's."""
        if self.job.get("launcher") == "local" and _is_controller(self.job["id"], self.path):
            return int(self.job["id"])
        try:
            holder, me = (
                LeaseHolder.from_bytes(read_within(self.path, lease.LEASE_FILE, max_bytes=lease.MAX_LEASE_BYTES)),
                LeaseHolder.this_process({}),
            )
        except OSError:  # nobody writes the run
            return None
        is_local = (holder.host, holder.boot) == (me.host, me.boot)
        return holder.pid if is_local and _has_open(holder.pid, self.path / lease.LEASE_FILE) else None

    def lease_holder_text(self) -> str | None:
        """Describe the process that writes the run, by its lease; None if none is known."""
        return lease.lease_holder(self.path) if (self.path / lease.LEASE_FILE).exists() else None


def read_run_summary(path: Path) -> RunSummary:
    """Read the summary of the run in ``path``.

    Raises:
        UserError: there is no run in it, or ``run.json`` is damaged.
    """
    try:
        record = json.loads(read_within(path, "run.json"))
        if record["format"] != RUN_FORMAT:
            raise ValueError("not of this version")
        check_record(record)
    except OSError as error:
        raise UserError(f"{path}/run.json: cannot read it ({error.strerror}); name a run by id or path") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}/run.json: damaged ({error}); {RUN_HINT}") from None
    summary = RunSummary(path.absolute(), record)
    try:
        content = read_within(path, "metrics.jsonl", max_bytes=journal.MAX_JOURNAL_BYTES)
    except FileNotFoundError:  # the run has not started
        content = b""
    except OSError as error:
        raise UserError(f"{summary.journal_path}: cannot read it ({error.strerror})") from None
    other_lines: list[bytes] = []
    lines: dict[str, list[bytes]] = {"epoch": [], "checkpoint": []}
    for line in content.split(b"\n"):
        kind = next((kind for begin, kind in DEFERRED_EVENTS.items() if line.startswith(begin)), None)
        (other_lines if kind is None else lines[kind]).append(line)
    summary.rows = _parsed(other_lines)
    final = any(row["event"] == "final" for row in summary.rows)
    summary._lines = {"epoch": lines["epoch"][-1:] if final else lines["epoch"], "checkpoint": lines["checkpoint"][-1:]}
    try:
        progress = json.loads(read_within(path, "progress.json"))
        summary.progress = progress if isinstance(progress, dict) else {}
    except (OSError, ValueError):
        summary.progress = {}
    return summary


def _parsed(lines: list[bytes]) -> list[Row]:
    rows = []
    for line in lines:
        try:
            row = json.loads(line, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("event"), str) and isinstance(row.get("t"), (int, float)):
            rows.append(row)
    return rows


def _is_controller(pid: str, run: Path) -> bool:
    """Return whether the process controls a job of this run: process ids are reused."""
    arguments = _text(Path("/proc", pid, "cmdline")).split("\0")
    is_controller = any("submitit" in argument or argument.endswith("/controller.py") for argument in arguments)
    return is_controller and any(argument.startswith(f"{run}/") for argument in arguments)


def _has_open(pid: int, file: Path) -> bool:
    """Return whether a process of this user has this file open."""
    try:
        return any(os.path.samefile(link, file) for link in Path(f"/proc/{pid}/fd").iterdir() if link.exists())
    except OSError:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _read_tail(log: BinaryIO) -> str:
    with log as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
        return file.read().decode(errors="replace")
