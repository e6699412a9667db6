"""Prints the output of a run's tasks, from all its jobs and their restarts: what is there, or as it is written."""

from __future__ import annotations

import json
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, TextIO

from runyard.cluster.monitor.run_status import RunStatus, run_status
from runyard.errors import UserError
from runyard.runs.record import JobRecord
from runyard.runs.state import RunState
from runyard.runs.summary import RunSummary

LOG_POLL_S = 0.5
MAX_LINE_BYTES = 1 << 20
LOGS_QUEUE_POLL_S = 10.0  # one SLURM controller serves many users
CONFIRM_END_S = 3.0  # a requeued job leaves the queue for a moment
# The line with which submitit begins a task's output at each start: logs are appended to.
SUBMITIT_START_LINE = re.compile(
    r"submitit INFO \((?P<at>[\d :-]+),\d+\) - Starting with Job.*hostname=(?P<host>[^,)]+)"
)


@dataclass(frozen=True)
class Line:
    """One line of a task's output or, with ``mark``, a separator that runyard puts between them."""

    job: str
    rank: int
    text: str
    mark: bool = False

    def as_text(self, prefix: bool) -> str:
        if self.mark:
            return f"── {self.text} ──"
        return f"[{self.rank}] {self.text}" if prefix else self.text

    def as_json(self) -> str:
        return json.dumps({"job": self.job, "rank": self.rank, "mark" if self.mark else "line": self.text})


class Logs:
    """The logs of ``run``, each read from where the last read ended.

    Args:
        run: The run.
        rank: The rank of the task whose output is read; None for all tasks.
        stream: ``out`` or ``err``.

    Raises:
        UserError: no job of this run can have such a log.
    """

    def __init__(self, run: RunSummary, rank: int | None, stream: str) -> None:
        self.run, self._rank, self._stream = run, rank, stream
        if not run.record["jobs"] and run.starts:
            raise UserError(
                f"run {run.id} was not started by `runyard submit`: its output is where its own command put it",
                f"its journal is {run.path}/metrics.jsonl",
            )
        task_count = max((_tasks(job) for job in run.record["jobs"]), default=0)
        if rank is not None and not 0 <= rank < (task_count or rank + 1):
            raise UserError(f"--rank {rank}: run {run.id} has {task_count} tasks, expected 0 to {task_count - 1}")
        self._read: dict[tuple[str, int], int] = {}
        self._restarts: dict[tuple[str, int], int] = {}
        self._began_at: dict[tuple[str, int], float] = {}

    @property
    def found(self) -> bool:
        """Whether there was a file to read."""
        return bool(self._read)

    def read_new(self, *, ended: bool = True) -> Iterator[Line]:
        """Yield the lines that were written since the last call, job by job and rank by rank.

        Args:
            ended: Whether the run has ended: then an incomplete last line is yielded, too.
        """
        jobs = self.run.record["jobs"]
        for number, job in enumerate(jobs):
            for rank, log in self.run.logs(job, self._stream).items():
                if self._rank not in (None, rank):
                    log.close()
                    continue
                has_heading = (str(job["id"]), rank) in self._read or self._stream == "out"  # submitit marks each start
                for line in self._read_rest((str(job["id"]), rank), log, ended):
                    if not has_heading:
                        has_heading = True
                        submitted = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job["submitted"]))
                        heading = f"job {job['id']}, {number + 1} of {len(jobs)} of this run, submitted {submitted}"
                        yield Line(str(job["id"]), rank, heading, mark=True)
                    yield self._line(str(job["id"]), rank, line)

    def _read_rest(self, key: tuple[str, int], log: BinaryIO, ended: bool) -> Iterator[str]:
        """Yield the lines written to ``log`` since it was last read; the last one only if complete or at the end.

        A line that is longer than ``MAX_LINE_BYTES`` becomes several, so that no log needs much memory.
        """
        with log as file:
            size = file.seek(0, os.SEEK_END)
            position = file.seek(min(self._read.get(key, 0), size))  # a log that is shorter than before was rewritten
            self._read[key] = position
            while position < size and (line := file.readline(min(MAX_LINE_BYTES, size - position))):
                if not (ended or line.endswith(b"\n") or len(line) == MAX_LINE_BYTES):
                    break
                self._read[key] = position = position + len(line)
                yield line.removesuffix(b"\n").decode(errors="replace")

    def _line(self, job: str, rank: int, text: str) -> Line:
        """Return the line. submitit's line at a start is replaced by a mark: which start it was, where and why."""
        if (match := SUBMITIT_START_LINE.match(text)) is None:
            return Line(job, rank, text)
        key = (job, rank)
        try:
            start_time = time.mktime(time.strptime(match["at"], "%Y-%m-%d %H:%M:%S"))
        except (ValueError, OverflowError):  # not submitit's line
            return Line(job, rank, text)
        restart = self._restarts[key] = self._restarts.get(key, -1) + 1
        previous_start, self._began_at[key] = self._began_at.get(key, 0.0), start_time
        causes = [event.cause for event in self.run.requeues if previous_start <= event.t <= start_time + 1]
        name = f"restart {restart} after {causes[-1]}" if causes and restart else f"restart {restart}"
        return Line(job, rank, f"{name if restart else 'start'} of job {job} on {match['host']}, {match['at']}", True)


def _tasks(job: JobRecord) -> int:
    return job.get("nodes", 1) * job["tasks_per_node"] if "tasks_per_node" in job else job.get("tasks", 0)


@dataclass(frozen=True)
class Printer:
    """Prints lines to ``out``, with a rank prefix if ``all_ranks``, or as JSON."""

    out: TextIO
    all_ranks: bool = False
    as_json: bool = False

    def show(self, lines: Iterable[Line]) -> None:
        for line in lines:
            print(line.as_json() if self.as_json else line.as_text(self.all_ranks), file=self.out)
        self.out.flush()


def follow_logs(logs: Logs, printer: Printer, stderr: TextIO, last: int | None = None) -> RunStatus:
    """Print the output as it is written, over restarts and later jobs, until the run has ended. Returns its status.

    Begins with the ``last`` existing lines, or all of them if None. What the run waits for is printed to ``stderr``.
    """
    last_query, ended_since, reported = float("-inf"), None, ""
    previous_event = logs.run.journal.last
    printer.show(deque(logs.read_new(ended=False), last))
    while True:
        changed = logs.run.journal.last is not previous_event or ended_since is not None or not logs.run.on_slurm
        if changed or time.monotonic() - last_query >= LOGS_QUEUE_POLL_S:
            previous_event, last_query, status = logs.run.journal.last, time.monotonic(), run_status(logs.run)
            ended = not status.active and status.state is not RunState.UNKNOWN
            ended_since = (ended_since or time.monotonic()) if ended else None
            if status.state in (RunState.WAITING, RunState.UNKNOWN) and reported != f"{status.state} {status.reason}":
                print(f"── {status.message} ──", file=stderr, flush=True)
            reported = f"{status.state} {status.reason}"
        if ended_since is not None and time.monotonic() - ended_since >= CONFIRM_END_S:
            printer.show(logs.read_new())
            return status
        time.sleep(LOG_POLL_S)
        logs.run.refresh()
        printer.show(logs.read_new(ended=False))
