"""What a run's directory says of it, read quickly enough for a table of a thousand runs."""

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

# How the journal begins the lines that there are many of: they are parsed only where somebody asks.
DEFERRED_EVENTS = {b'{"event": "epoch"': "epoch", b'{"event": "checkpoint"': "checkpoint"}
LOG_TAIL_BYTES = 4096


@dataclass
class RunSummary:
    """A run's record, journal and progress.

    Attributes:
        path: The run's directory.
        record: ``run.json``.
        rows: The journal's rows but for epochs and checkpoints.
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
        """What names this run on a command line typed here."""
        return self.id if self.path == Path("runs", self.id).absolute() else str(self.path)

    @property
    def starts(self) -> list[Row]:
        return [row for row in self.rows if row["event"] == "start"]

    @property
    def last_event(self) -> Row:
        """The newest of the rows that say where the run stands: ``start``, ``stop`` or ``requeue``; or an empty one."""
        return next((row for row in reversed(self.rows) if row["event"] in ("start", "stop", "requeue")), {"event": ""})

    @property
    def job(self) -> dict[str, Any]:
        """The newest job: of the record, or what the journal knows of one that another command put on SLURM.

        Not one in which a local job was started: the next run that W&B's agent takes there is another.
        """
        noted: dict[str, Any] = self.record["jobs"][-1] if self.record["jobs"] else {}
        began = next(iter(reversed(self.starts)), {})
        numbered = re.fullmatch(r"[0-9]+(_[0-9]+)?", str(began.get("job_id")))
        another = numbered and began.get("launcher") != "submitit, local"
        if another and began["t"] > noted.get("submitted", 0) and began["job_id"] != noted.get("id"):
            where = {"launcher": "slurm", "submitted": began["t"], "nodes": began.get("nodes")}
            return {"id": str(began["job_id"])} | where
        return noted

    @property
    def pending_submission(self) -> dict[str, Any] | None:
        """One that was begun and has not come to a job, as far as its record knows."""
        intended: dict[str, Any] | None = self.record.get("submission")
        return intended

    @property
    def slurm_jobs(self) -> list[str]:
        """Ids of its jobs on SLURM, oldest first, with the one that another command put there."""
        noted = [job for job in self.record["jobs"] if job.get("launcher") == "slurm"]
        ids = [str(job["id"]) for job in noted]
        return ids if not self.on_slurm or self.job["id"] in ids else [*ids, str(self.job["id"])]

    @property
    def on_slurm(self) -> bool:
        return self.job.get("launcher") == "slurm"

    @property
    def end_recorded(self) -> bool:
        """The journal's last word is how the run ended, and it was said after the newest job was submitted."""
        return self.last_event["event"] == "stop" and self.last_event["t"] >= self.job.get("submitted", 0)

    @property
    def finished_for_good(self) -> bool:
        """Finished, and nothing was submitted since: nobody need be asked."""
        return self.end_recorded and self.last_event.get("reason") == "finished"

    @property
    def epochs(self) -> list[Row]:
        """Its epochs' rows; of a run that has said its final word only the newest."""
        return journal.epochs(_parsed(self._lines.get("epoch", [])))

    @property
    def last_checkpoint_step(self) -> int | None:
        """Step of the newest checkpoint that was saved, by the journal."""
        rows = _parsed(self._lines.get("checkpoint", []))
        return int(rows[-1]["step"]) if rows else None

    @property
    def checkpoint_warning(self) -> str:
        """In words, that the newest checkpoint is gone or damaged; empty where it seems whole, or there was none."""
        doubt = (
            None
            if self.last_checkpoint_step is None
            else saved_checkpoints.checkpoint_problem(self.path / "checkpoints", self.last_checkpoint_step)
        )
        return f", but {doubt}" if doubt else ""

    def logs(self, job: dict[str, Any], stream: str) -> dict[int, BinaryIO]:
        """What the tasks of a job of this run wrote to ``out`` or ``err``, open to be read, by rank."""
        inside, folder = os.path.realpath(self.path), str(job.get("logs", "slurm"))
        if folder.startswith("../"):  # with those of the other points of its sweep
            inside, folder = os.path.dirname(inside), folder.removeprefix("../")
        name = re.compile(rf"{re.escape(str(job.get('id')))}_(\d{{1,9}})_log\.{stream}")
        opened = {}
        for path in sorted(Path(inside, folder).glob(f"*_log.{stream}")):
            if found := name.fullmatch(path.name):
                with contextlib.suppress(OSError):  # gone meanwhile; or no log, but a link that leads elsewhere
                    opened[int(found[1])] = open_within(Path(inside), f"{folder}/{path.name}")
        return dict(sorted(opened.items()))

    def last_error_line(self) -> str | None:
        """The last line of an error log of the newest job: of our own words if there are any."""
        logs = self.logs(self.job, "err").values()
        lines = [[line for line in _read_tail(log).splitlines() if line.strip()] for log in logs]
        tasks = [[line for line in log if not line.startswith("srun: ")] for log in lines]  # which tells of ending them
        said = [line for log in (tasks if any(tasks) else lines) for line in log[-1:]]
        ours = [line.removeprefix("runyard: ") for line in said if line.startswith("runyard: ")]
        return next(iter([*ours, *said]), None)

    def local_pid(self) -> int | None:
        """The process of this machine that leads the run, if it is alive and really this run's."""
        if self.job.get("launcher") == "local" and _is_controller(self.job["id"], self.path):
            return int(self.job["id"])
        try:
            them, me = (
                LeaseHolder.from_bytes(read_within(self.path, lease.LEASE_FILE, max_bytes=lease.MAX_LEASE_BYTES)),
                LeaseHolder.this_process({}),
            )
        except OSError:  # nobody writes the run
            return None
        here = (them.host, them.boot) == (me.host, me.boot) and _has_open(them.pid, self.path / lease.LEASE_FILE)
        return them.pid if here else None

    def lease_holder_text(self) -> str | None:
        """Who writes the run, in words, as far as its lease tells."""
        return lease.lease_holder(self.path) if (self.path / lease.LEASE_FILE).exists() else None


def read_run_summary(path: Path) -> RunSummary:
    """Read the run in ``path``.

    Raises:
        UserError: it holds none, or ``run.json`` is damaged.
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
    found = RunSummary(path.absolute(), record)
    try:
        content = read_within(path, "metrics.jsonl", max_bytes=journal.MAX_JOURNAL_BYTES)
    except FileNotFoundError:  # it has not begun
        content = b""
    except OSError as error:
        raise UserError(f"{found.journal_path}: cannot read it ({error.strerror})") from None
    other_lines: list[bytes] = []
    lines: dict[str, list[bytes]] = {"epoch": [], "checkpoint": []}
    for line in content.split(b"\n"):
        kind = next((kind for begin, kind in DEFERRED_EVENTS.items() if line.startswith(begin)), None)
        (other_lines if kind is None else lines[kind]).append(line)
    found.rows = _parsed(other_lines)
    final = any(row["event"] == "final" for row in found.rows)
    found._lines = {"epoch": lines["epoch"][-1:] if final else lines["epoch"], "checkpoint": lines["checkpoint"][-1:]}
    try:
        progress = json.loads(read_within(path, "progress.json"))
        found.progress = progress if isinstance(progress, dict) else {}
    except (OSError, ValueError):
        found.progress = {}
    return found


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
    """Whether a process leads a job, for a folder of this run: numbers of processes come round again."""
    words = _text(Path("/proc", pid, "cmdline")).split("\0")
    leads = any("submitit" in word or word.endswith("/controller.py") for word in words)
    return leads and any(word.startswith(f"{run}/") for word in words)


def _has_open(pid: int, file: Path) -> bool:
    """Whether a process of ours has this file open."""
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
