"""What SLURM says of jobs, of which run each is, and how those ended that squeue no longer knows."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from runyard import known_causes
from runyard.slurm_client import QueryError, SlurmRejected, SlurmUnavailable, run_with_retry

SEPARATOR = "\x1f"  # of names and paths, which may hold a bar
SQUEUE_FIELDS = f"%i|%T|%r|%M|%L|%S|%N|%j{SEPARATOR}%Z{SEPARATOR}%o"
SACCT_FIELDS = "JobID,State,ExitCode,ElapsedRaw,Start,NodeList,JobName"
# What a job of ours runs: a script of its submission's own, or one of slurm/ with the run or a list of runs.
SUBMISSION_SCRIPT = re.compile(r"\.?submission_\w+\.sh")
SLURM_SCRIPT = re.compile(r"(?:.*/)?(train|train_torchrun|sweep)\.sbatch (.+)")
PENDING_STATES = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
RUNNING_STATES = {"RUNNING", "CONFIGURING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}


@dataclass(frozen=True)
class JobInfo:
    """One job, or one element of an array, at its newest attempt.

    Attributes:
        id: As ``12``, or ``12_3`` for an array's element.
        name: Its name in SLURM: the run's id or the sweep's, for jobs of ours.
        state: SLURM's word for it, in capitals.
        reason: SLURM's code for why it waits or how it ended; "" where there is none.
        elapsed_s: How long it has run, None where it has not.
        left_s: What remains of its time limit, None without one.
        start: When it started, or is expected to, unix seconds.
        nodes: Their names.
        before: The states that its earlier attempts ended in, oldest first; known to accounting only.
        end: How its batch script ended, ``exit code 3`` or a signal's name; "" where nothing says so or all was well.
        workdir, command: Where it was submitted, and its script with what that was given; known to squeue only.
    """

    id: str
    name: str
    state: str
    reason: str = ""
    elapsed_s: int | None = None
    left_s: int | None = None
    start: float | None = None
    nodes: tuple[str, ...] = ()
    earlier_states: tuple[str, ...] = ()
    end: str = ""
    workdir: str = ""
    command: str = ""

    @property
    def run(self) -> Path | None:
        """The directory of the run that it trains, by what SLURM says that it runs; None of a job that is not ours."""
        folder, name = os.path.split(self.command)
        if SUBMISSION_SCRIPT.fullmatch(name):
            return Path(folder).parent if folder.endswith("/slurm") else self._listed(Path(folder, "runs.txt"))
        if (plain := SLURM_SCRIPT.fullmatch(self.command)) is not None:
            given = Path(self.workdir, plain[2])
            return self._listed(given) if plain[1] == "sweep" else given
        return None

    def _listed(self, file: Path) -> Path | None:
        """The line of its element in a list of runs."""
        try:
            lines = file.read_text().splitlines()
        except (OSError, ValueError):
            return None
        at = int(self.id.partition("_")[2] or 0)
        return Path(self.workdir, lines[at]) if at < len(lines) else None

    @property
    def pending(self) -> bool:
        return self.state in PENDING_STATES

    @property
    def running(self) -> bool:
        return self.state in RUNNING_STATES

    @property
    def active(self) -> bool:
        """On the queue: it waits or has nodes."""
        return self.pending or self.running


@dataclass(frozen=True)
class JobAnswer:
    """The jobs a command knew, by id; or why it could not say, in one line.

    Attributes:
        away: The controller does not answer now. Otherwise a ``error`` is one that waiting does not mend.
    """

    jobs: dict[str, JobInfo]
    error: str | None = None
    unavailable: bool = False

    def jobs_of(self, run: Path) -> list[JobInfo]:
        """The jobs of the run in this directory, newest first, whatever its record says of them."""
        return self._by_directory.get(_inode(run), [])

    @cached_property
    def _by_directory(self) -> dict[tuple[int, int] | None, list[JobInfo]]:
        found: dict[tuple[int, int] | None, list[JobInfo]] = {}
        for job in sorted(self.jobs.values(), key=lambda job: _sort_key(job.id), reverse=True):
            if (run := job.run) is not None and (identity := _inode(run)) is not None:
                found.setdefault(identity, []).append(job)
        return found


def _inode(folder: Path) -> tuple[int, int] | None:
    """Names a directory by whatever path it is reached."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def squeue(ids: Iterable[str], wait_s: float = 0.0) -> JobAnswer:
    """What waits and runs of these jobs, and what ended in the last minutes (MinJobAge). Arrays come by element."""
    if not (numbers := _job_ids(ids)):
        return JobAnswer({})
    return _squeue(f"--jobs={numbers}", wait_s)


def all_user_jobs(ids: Iterable[str], wait_s: float = 0.0) -> JobAnswer:
    """The same of all jobs of this user, and of these others'; while the controller is away asked for ``wait_s``."""
    mine = _squeue("--me", wait_s)
    others = set(ids) - mine.jobs.keys() if mine.error is None else ()
    more = squeue(others)
    return JobAnswer(mine.jobs | more.jobs, mine.error or more.error, mine.unavailable or more.unavailable)


def _squeue(which: str, wait_s: float) -> JobAnswer:
    options = ("--noheader", "--array", "--states=all", which, f"--format={SQUEUE_FIELDS}")
    try:
        return JobAnswer(parse_squeue(run_with_retry("squeue", *options, wait_s=wait_s)))
    except QueryError as error:
        if "Invalid job id" in str(error):  # said only where a single one is asked for: it is long gone
            return JobAnswer({})
        return _failed_answer("squeue", error)


def sacct(ids: Iterable[str]) -> JobAnswer:
    """How these jobs ended, all their attempts taken together."""
    if not (numbers := _job_ids(ids)):
        return JobAnswer({})
    options = ("--noheader", "--parsable2", "--duplicates", f"--jobs={numbers}", f"--format={SACCT_FIELDS}")
    try:
        return JobAnswer(parse_sacct(run_with_retry("sacct", *options, wait_s=0)))
    except QueryError as error:
        return _failed_answer("sacct", error)


def _failed_answer(command: str, error: QueryError) -> JobAnswer:
    said = f"{command}: {error}" if isinstance(error, SlurmRejected) else str(error)
    return JobAnswer({}, said, isinstance(error, SlurmUnavailable))


def parse_squeue(text: str) -> dict[str, JobInfo]:
    """Jobs by id from squeue's lines of ``SQUEUE_FIELDS``; what is no such line is passed over."""
    jobs = {}
    for line in text.splitlines():
        fields = line.split("|", 7)
        if len(fields) == 8 and re.fullmatch(r"\d+(_\d+)?", fields[0]):
            number, state, reason, elapsed, left, start, nodes, rest = fields
            name, _, run = rest.partition(SEPARATOR)
            workdir, _, command = run.partition(SEPARATOR)
            jobs[number] = JobInfo(
                number, name, state, "" if reason in ("None", "(null)") else reason,
                duration_s(elapsed), duration_s(left), parse_time(start), expand_hostlist(nodes),
                workdir=workdir, command=command,
            )  # fmt: skip
    return jobs


def parse_sacct(text: str) -> dict[str, JobInfo]:
    """Jobs by id from sacct's lines of ``SACCT_FIELDS``, steps among them; a requeued job has several, oldest first.

    A step that ran out of memory says so even where its job only failed, since the batch script went on after it.
    """
    jobs: dict[str, JobInfo] = {}
    for line in text.splitlines():
        fields = line.split("|", 6)
        if len(fields) != 7:
            continue
        number, said, code, elapsed, start, nodes, name = fields
        state = said.partition(" ")[0]  # CANCELLED by 1000
        job, _, step = number.partition(".")
        if not re.fullmatch(r"\d+(_\d+)?", job):
            continue
        if step:
            if state == "OUT_OF_MEMORY" and job in jobs and jobs[job].state == "FAILED":
                jobs[job] = replace(jobs[job], state=state)
            continue
        before = (*jobs[job].earlier_states, jobs[job].state) if job in jobs else ()
        seconds = int(elapsed) if elapsed.isdigit() else None
        jobs[job] = JobInfo(
            job, name, state, "", seconds, None, parse_time(start), expand_hostlist(nodes), before, _exit_text(code)
        )
    return jobs


def _exit_text(code: str) -> str:
    """Of SLURM's ``exit code:signal``."""
    exit_code, _, number = code.partition(":")
    if not exit_code.isdigit() or not number.isdigit() or code == "0:0":
        return ""
    return known_causes.describe_exit(-int(number) if int(number) else int(exit_code))


def duration_s(text: str) -> int | None:
    """Seconds of SLURM's ``[days-][[hours:]minutes:]seconds``; None for UNLIMITED, INVALID and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text.strip())
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_time(text: str) -> float | None:
    """Unix seconds of SLURM's local time, as 2026-11-23T22:31:00; None for N/A and Unknown."""
    try:
        return time.mktime(time.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def expand_hostlist(text: str) -> tuple[str, ...]:
    """The names that SLURM's list stands for: ``a[1-2,07-08],b`` are a1, a2, a07, a08 and b."""
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text.strip()):
        if part not in ("None assigned", "(null)"):
            pieces = [_expand_range(piece) for piece in re.split(r"(\[[^\]]*\])", part)]
            names += map("".join, itertools.product(*pieces))
    return tuple(names)


def _expand_range(piece: str) -> list[str]:
    if not re.fullmatch(r"\[\d+(-\d+)?(,\d+(-\d+)?)*\]", piece):
        return [piece]
    names = []
    for part in piece[1:-1].split(","):
        first, _, last = part.partition("-")
        names += [f"{k:0{len(first)}d}" for k in range(int(first), int(last or first) + 1)]
    return names


def _sort_key(number: str) -> tuple[int, ...]:
    return tuple(map(int, number.split("_")))


def _job_ids(ids: Iterable[str]) -> str:
    """Job numbers for a command line; an array stands for all its elements."""
    return ",".join(sorted({number.partition("_")[0] for number in ids}, key=int))
