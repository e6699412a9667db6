"""Reads jobs from squeue and sacct: their states, the run of each, and how those ended that squeue no longer knows."""

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
from runyard.slurm_client import JobEnded, QueryError, SlurmRejected, SlurmUnavailable, run_with_retry

SEPARATOR = "\x1f"  # between names and paths, which may contain a |
RUN_SEPARATOR = "\t"  # between the runs of one job, in a list with a line for each job
SQUEUE_FIELDS = f"%i|%T|%r|%M|%L|%S|%N|%j{SEPARATOR}%Z{SEPARATOR}%o"
SACCT_FIELDS = "JobID,State,ExitCode,ElapsedRaw,Start,NodeList,JobName"
# What a job of runyard runs: its submission's own script, or one of slurm/ with the run or a list of runs.
SUBMISSION_SCRIPT = re.compile(r"\.?submission_\w+\.sh")
SLURM_SCRIPT = re.compile(r"(?:.*/)?(train|train_torchrun|sweep)\.sbatch (.+)")
PENDING_STATES = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
RUNNING_STATES = {"RUNNING", "CONFIGURING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}


@dataclass(frozen=True)
class JobInfo:
    """One job, or one element of an array, at its newest attempt.

    Attributes:
        id: As ``12``, or ``12_3`` for an array's element.
        name: Its name in SLURM: the run's id or the sweep's, for jobs of runyard.
        state: SLURM's name of its state, in capitals.
        reason: SLURM's code for why it waits or how it ended; "" if there is none.
        elapsed_s: How long it has run, in seconds, None if it has not.
        left_s: What remains of its time limit, in seconds, None without one.
        start: When it started, or is expected to, in unix seconds.
        nodes: The names of its nodes.
        earlier_states: The states that its earlier attempts ended in, oldest first; known to accounting only.
        end: How its batch script ended, ``exit code 3`` or a signal's name; "" if it succeeded or this is not known.
        workdir, command: Where it was submitted, and its script with the arguments; known to squeue only.
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

    @cached_property
    def runs(self) -> list[Path]:
        """The directories of the runs that it trains, by its command; none for a job that is not runyard's."""
        folder, name = os.path.split(self.command)
        if SUBMISSION_SCRIPT.fullmatch(name):
            return [Path(folder).parent] if folder.endswith("/slurm") else self._listed(Path(folder, "runs.txt"))
        if (match := SLURM_SCRIPT.fullmatch(self.command)) is not None:
            argument = Path(self.workdir, match[2])
            return self._listed(argument) if match[1] == "sweep" else [argument]
        return []

    def _listed(self, file: Path) -> list[Path]:
        """Return the runs in the line of this job's array element in a list of runs."""
        try:
            lines = file.read_text().splitlines()
        except (OSError, ValueError):
            return []
        index = int(self.id.partition("_")[2] or 0)
        return [Path(self.workdir, run) for run in lines[index].split(RUN_SEPARATOR)] if index < len(lines) else []

    @property
    def pending(self) -> bool:
        return self.state in PENDING_STATES

    @property
    def running(self) -> bool:
        return self.state in RUNNING_STATES

    @property
    def active(self) -> bool:
        """Whether it is on the queue: it waits or has nodes."""
        return self.pending or self.running


@dataclass(frozen=True)
class JobAnswer:
    """The jobs that a command knew, or why it could not answer.

    Attributes:
        jobs: The jobs, by id.
        error: Why the command could not answer, in one line; None if it did.
        unavailable: Whether the controller does not answer now. Any other ``error`` does not go away by waiting.
    """

    jobs: dict[str, JobInfo]
    error: str | None = None
    unavailable: bool = False

    def jobs_of(self, run: Path) -> list[JobInfo]:
        """Return the jobs of the run in this directory, newest first, whatever its record says of them."""
        return self._by_directory.get(_inode(run), [])

    @cached_property
    def _by_directory(self) -> dict[tuple[int, int] | None, list[JobInfo]]:
        jobs_by_inode: dict[tuple[int, int] | None, list[JobInfo]] = {}
        for job in sorted(self.jobs.values(), key=lambda job: _sort_key(job.id), reverse=True):
            for run in job.runs:
                if (identity := _inode(run)) is not None:
                    jobs_by_inode.setdefault(identity, []).append(job)
        return jobs_by_inode


def _inode(folder: Path) -> tuple[int, int] | None:
    """Return device and inode, which identify a directory whatever path leads to it; None if there is none."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def squeue(ids: Iterable[str], wait_s: float = 0.0, timeout_s: float | None = None) -> JobAnswer:
    """Return which of these jobs wait, run, or ended in the last minutes (MinJobAge). Arrays come by element."""
    if not (numbers := _job_ids(ids)):
        return JobAnswer({})
    return _squeue(f"--jobs={numbers}", wait_s, timeout_s)


def all_user_jobs(ids: Iterable[str], wait_s: float = 0.0, timeout_s: float | None = None) -> JobAnswer:
    """Return the same for all jobs of this user and for ``ids``. Retries for ``wait_s`` if the controller is away."""
    own = _squeue("--me", wait_s, timeout_s)
    others = set(ids) - own.jobs.keys() if own.error is None else ()
    others_answer = squeue(others, timeout_s=timeout_s)
    return JobAnswer(
        own.jobs | others_answer.jobs, own.error or others_answer.error, own.unavailable or others_answer.unavailable
    )


def _squeue(selection: str, wait_s: float, timeout_s: float | None) -> JobAnswer:
    options = ("--noheader", "--array", "--states=all", selection, f"--format={SQUEUE_FIELDS}")
    try:
        return JobAnswer(parse_squeue(run_with_retry("squeue", *options, wait_s=wait_s, timeout_s=timeout_s)))
    except JobEnded:  # squeue says so only of a single job, which ended long ago
        return JobAnswer({})
    except QueryError as error:
        return _failed_answer("squeue", error)


def srun_steps(job: str) -> list[str]:
    """Return the ids of the job's running steps that srun started, such as ``12_3.0``.

    Raises:
        QueryError: squeue does not answer, or refuses.
    """
    try:
        said = run_with_retry("squeue", "--steps", "--noheader", f"--jobs={job}", "--format=%i")
    except JobEnded:
        return []
    return [step for step in said.split() if step.rpartition(".")[2].isdigit()]  # not 12_3.batch


def sacct(ids: Iterable[str], timeout_s: float | None = None) -> JobAnswer:
    """Return how these jobs ended, all attempts of a job taken together."""
    if not (numbers := _job_ids(ids)):
        return JobAnswer({})
    options = ("--noheader", "--parsable2", "--duplicates", f"--jobs={numbers}", f"--format={SACCT_FIELDS}")
    try:
        return JobAnswer(parse_sacct(run_with_retry("sacct", *options, wait_s=0, timeout_s=timeout_s)))
    except QueryError as error:
        return _failed_answer("sacct", error)


def _failed_answer(command: str, error: QueryError) -> JobAnswer:
    message = f"{command}: {error}" if isinstance(error, SlurmRejected) else str(error)
    return JobAnswer({}, message, isinstance(error, SlurmUnavailable))


def parse_squeue(text: str) -> dict[str, JobInfo]:
    """Return jobs by id from squeue's lines of ``SQUEUE_FIELDS``; other lines are skipped."""
    jobs = {}
    for line in text.splitlines():
        fields = line.split("|", 7)
        if len(fields) == 8 and re.fullmatch(r"\d+(_\d+)?", fields[0]):
            number, state, reason, elapsed, remaining, start, nodes, name_and_run = fields
            name, _, workdir_and_command = name_and_run.partition(SEPARATOR)
            workdir, _, command = workdir_and_command.partition(SEPARATOR)
            jobs[number] = JobInfo(
                number, name, state, "" if reason in ("None", "(null)") else reason,
                duration_s(elapsed), duration_s(remaining), parse_time(start), expand_hostlist(nodes),
                workdir=workdir, command=command,
            )  # fmt: skip
    return jobs


def parse_sacct(text: str) -> dict[str, JobInfo]:
    """Return jobs by id from sacct's lines of ``SACCT_FIELDS``, which include steps and earlier attempts, oldest first.

    A job that FAILED after a step of it ran out of memory is OUT_OF_MEMORY: its batch script continued after the step.
    """
    jobs: dict[str, JobInfo] = {}
    for line in text.splitlines():
        fields = line.split("|", 6)
        if len(fields) != 7:
            continue
        number, state_text, code, elapsed, start, nodes, name = fields
        state = state_text.partition(" ")[0]  # CANCELLED by 1000
        job, _, step = number.partition(".")
        if not re.fullmatch(r"\d+(_\d+)?", job):
            continue
        if step:
            if state == "OUT_OF_MEMORY" and job in jobs and jobs[job].state == "FAILED":
                jobs[job] = replace(jobs[job], state=state)
            continue
        earlier = (*jobs[job].earlier_states, jobs[job].state) if job in jobs else ()
        seconds = int(elapsed) if elapsed.isdigit() else None
        jobs[job] = JobInfo(
            job, name, state, "", seconds, None, parse_time(start), expand_hostlist(nodes), earlier, _exit_text(code)
        )
    return jobs


def _exit_text(code: str) -> str:
    """Describe SLURM's ``exit code:signal``; "" for success."""
    exit_code, _, number = code.partition(":")
    if not exit_code.isdigit() or not number.isdigit() or code == "0:0":
        return ""
    return known_causes.describe_exit(-int(number) if int(number) else int(exit_code))


def duration_s(text: str) -> int | None:
    """Return the seconds of SLURM's ``[days-][[hours:]minutes:]seconds``; None for UNLIMITED, INVALID and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_time(text: str) -> float | None:
    """Return the unix seconds of SLURM's local time, as 2026-11-23T22:31:00; None for N/A and Unknown."""
    try:
        return time.mktime(time.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def expand_hostlist(text: str) -> tuple[str, ...]:
    """Return the names in SLURM's host list: ``a[1-2,07-08],b`` stands for a1, a2, a07, a08 and b."""
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
    """Return the job numbers for a command line; an array's number stands for all its elements."""
    return ",".join(sorted({number.partition("_")[0] for number in ids}, key=int))
