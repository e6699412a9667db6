"""A run's summary, read fast enough for a table of a thousand runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import BinaryIO

from runyard.files import explaining_unreadable, open_within, read_within
from runyard.runs import journal, lease, saved_checkpoints
from runyard.runs.events import (
    EpochEvent,
    ExcludeEvent,
    RequeueEvent,
    StartEvent,
    StopEvent,
    finite_or_none,
    parse_event,
)
from runyard.runs.journal import JournalReader, decode_line
from runyard.runs.lease_holder import LeaseHolder
from runyard.runs.record import JOB_ID, JobRecord, read_record
from runyard.runs.state import JournalState, RunState
from runyard.runs.store import reference_to

# How the most frequent lines of the journal begin: they are parsed only when they are needed.
DEFERRED_EVENTS = {b'{"event": "epoch"': "epoch", b'{"event": "checkpoint"': "checkpoint"}
LOG_TAIL_BYTES = 4096


class RunSummary:
    """A run's record, journal and progress. ``refresh`` reads what has changed since: of the journal what was appended.

    Attributes:
        path: The run's directory.
        record: ``run.json``.
        journal: What the journal says of the run's state.
        exclusions: The nodes that were excluded.
        requeues: The requeues that the batch script recorded.
        progress: The numbers in ``progress.json``; empty if it is missing or damaged.

    Raises:
        UserError: there is no run in ``path``, ``run.json`` is damaged, or the journal exists and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.journal = JournalState()
        self.exclusions: list[ExcludeEvent] = []
        self.requeues: list[RequeueEvent] = []
        self._reader = JournalReader(self.journal_path)
        self._epoch_lines: list[bytes] = []
        self._checkpoint_line = b""
        self.refresh()

    def refresh(self) -> None:
        """Read the run again. Raises as the constructor does."""
        self.record = read_record(self.path)
        with explaining_unreadable(self.journal_path):
            for line in self._reader.new_lines(whole=False):
                self._take(line)
        if self.journal.final is not None:
            del self._epoch_lines[:-1]
        self.progress = read_progress(self.path)

    def _take(self, line: bytes) -> None:
        kind = next((kind for begin, kind in DEFERRED_EVENTS.items() if line.startswith(begin)), None)
        if kind == "epoch":
            self._epoch_lines.append(line)
        elif kind == "checkpoint":
            self._checkpoint_line = line
        elif (row := decode_line(line)) is not None:
            event = parse_event(row)
            self.journal.advance(event)
            if isinstance(event, ExcludeEvent):
                self.exclusions.append(event)
            elif isinstance(event, RequeueEvent):
                self.requeues.append(event)

    @property
    def id(self) -> str:
        return str(self.record["id"])

    @property
    def journal_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def reference(self) -> str:
        """What names this run on a command line in this directory."""
        return reference_to(self.path)

    @property
    def starts(self) -> list[StartEvent]:
        return self.journal.starts

    @property
    def job(self) -> JobRecord:
        """The newest job: from the record, or from the journal if another command submitted it to SLURM.

        A SLURM job in which a local job was started does not count: there W&B's agent may run another run next.
        """
        recorded: JobRecord = self.record["jobs"][-1] if self.record["jobs"] else {}
        start = self.starts[-1] if self.starts else None
        if start is not None and (of_chain := [job for job in self.chain if job["id"] == start.job_id]):
            return of_chain[0]
        if start is None or start.job_id in (None, recorded.get("id")) or start.launcher == "submitit, local":
            return recorded
        if start.t > recorded.get("submitted", 0) and JOB_ID.fullmatch(str(start.job_id)):
            job: JobRecord = {"id": str(start.job_id), "launcher": "slurm", "submitted": start.t}
            return job if start.nodes is None else {**job, "nodes": start.nodes}
        return recorded

    @property
    def chain(self) -> list[JobRecord]:
        """The jobs of the newest submission, oldest first: several are a chain (``cluster.chain``)."""
        jobs = self.record["jobs"]
        return [job for job in jobs if job is jobs[-1] or ("token" in job and job["token"] == jobs[-1].get("token"))]

    @property
    def pending_submission(self) -> JobRecord | None:
        """A submission that was begun and has no job yet, by the record; else None."""
        return self.record.get("submission")

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
    def recorded_end(self) -> StopEvent | None:
        """The journal's last word, if it is a ``stop`` that was written after the newest job was submitted."""
        last = self.journal.last
        return last if isinstance(last, StopEvent) and last.t >= self.job.get("submitted", 0) else None

    @property
    def finished_for_good(self) -> bool:
        """Whether the run finished and nothing was submitted since: SLURM need not be asked."""
        return self.recorded_end is not None and self.journal.state is RunState.FINISHED

    @property
    def epochs(self) -> list[EpochEvent]:
        """The epochs, each once; of a run with a final evaluation only the newest."""
        rows = journal.epochs(row for line in self._epoch_lines if (row := decode_line(line)) is not None)
        return [event for row in rows if isinstance(event := parse_event(row), EpochEvent)]

    @property
    def last_checkpoint_step(self) -> int | None:
        """Step of the newest saved checkpoint by the journal, or None."""
        row = decode_line(self._checkpoint_line)
        return None if row is None else getattr(parse_event(row), "step", None)

    @property
    def checkpoint_warning(self) -> str:
        """A clause that says if the newest checkpoint is missing or damaged; empty if it seems valid or none exists."""
        problem = (
            None
            if self.last_checkpoint_step is None
            else saved_checkpoints.checkpoint_problem(self.path / "checkpoints", self.last_checkpoint_step)
        )
        return f", but {problem}" if problem else ""

    def logs(self, job: JobRecord, stream: str) -> dict[int, BinaryIO]:
        """Open the logs of the tasks of a job of this run, by rank. ``stream`` is ``out`` or ``err``."""
        inside, folder = os.path.realpath(self.path), str(job.get("logs", "slurm"))
        if folder.startswith("../"):  # together with the logs of its sweep's other runs
            inside, folder = os.path.dirname(inside), folder.removeprefix("../")
        name = re.compile(rf"{re.escape(str(job.get('id')))}_(\d{{1,9}})_log\.{stream}")
        opened = {}
        for path in sorted(Path(inside, folder).glob(f"*_log.{stream}")):
            if match := name.fullmatch(path.name):
                if "task" in job and int(match[1]) != job["task"]:
                    continue  # another run's, in the same job
                rank = int(match[1]) - job.get("task", 0)
                with contextlib.suppress(OSError):  # deleted meanwhile; or a link that leads elsewhere
                    opened[rank] = open_within(Path(inside), f"{folder}/{path.name}")
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


def read_progress(run: Path) -> dict[str, float]:
    """Return the finite numbers in the run's ``progress.json``; none if it is missing or damaged."""
    try:
        progress = json.loads(read_within(run, "progress.json"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(progress, dict):
        return {}
    return {name: value for name in progress if (value := finite_or_none(progress, name)) is not None}


def _is_controller(pid: str, run: Path) -> bool:
    """Return whether the process controls a job of this run: process ids are reused."""
    arguments = _text(Path("/proc", pid, "cmdline")).split("\0")
    is_controller = any("submitit" in argument or argument.endswith("/controller.py") for argument in arguments)
    return is_controller and any(argument.startswith(f"{run}/") for argument in arguments)


def _has_open(pid: int, file: Path) -> bool:
    """Return whether a process of this user has this file open. A hard link may lead to a file of another program."""
    try:
        return file.lstat().st_nlink == 1 and any(
            os.path.samefile(link, file) for link in Path(f"/proc/{pid}/fd").iterdir() if link.exists()
        )
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
