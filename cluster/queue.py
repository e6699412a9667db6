"""What SLURM says of jobs: one squeue, and one sacct for what squeue no longer knows."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from runyard import causes
from runyard.errors import UserError

SQUEUE_FIELDS = "%i|%T|%r|%M|%L|%S|%N|%j"  # the name comes last: somebody else's may hold a bar
SACCT_FIELDS = "JobID,State,ExitCode,ElapsedRaw,Start,NodeList,JobName"
ANSWER_TIMEOUT_S = 30
WAITS = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
RUNS = {"RUNNING", "CONFIGURING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}


@dataclass(frozen=True)
class Job:
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
    """

    id: str
    name: str
    state: str
    reason: str = ""
    elapsed_s: int | None = None
    left_s: int | None = None
    start: float | None = None
    nodes: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    end: str = ""

    @property
    def waits(self) -> bool:
        return self.state in WAITS

    @property
    def runs(self) -> bool:
        return self.state in RUNS

    @property
    def active(self) -> bool:
        """On the queue: it waits or has nodes."""
        return self.waits or self.runs


@dataclass(frozen=True)
class Answer:
    """The jobs a command knew, by id; or why it could not say, in one line."""

    jobs: dict[str, Job]
    problem: str | None = None


def squeue(ids: Iterable[str]) -> Answer:
    """What waits and runs of these jobs, and what ended in the last minutes (MinJobAge). Arrays come by element."""
    if not (numbers := _numbers(ids)):
        return Answer({})
    options = ("--noheader", "--array", "--states=all", f"--jobs={numbers}", f"--format={SQUEUE_FIELDS}")
    said, error = _ask("squeue", *options)
    if error and "Invalid job id" in error:  # said only where a single one is asked for: it is long gone
        return Answer({})
    return Answer(parse_squeue(said), error)


def named(beginning: str) -> dict[str, list[str]]:
    """Ids of the user's jobs that wait, run or ended in the last minutes, by those of their names that begin so.

    Raises:
        UserError: SLURM did not answer.
    """
    said, error = _ask("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i %j")
    if error:
        raise UserError(error)
    found: dict[str, list[str]] = {}
    for line in said.splitlines():
        number, _, name = line.strip().partition(" ")
        if name.startswith(beginning):
            found.setdefault(name, []).append(number)
    return found


def sacct(ids: Iterable[str]) -> Answer:
    """How these jobs ended, all their attempts taken together."""
    if not (numbers := _numbers(ids)):
        return Answer({})
    options = ("--noheader", "--parsable2", "--duplicates", f"--jobs={numbers}", f"--format={SACCT_FIELDS}")
    said, error = _ask("sacct", *options)
    return Answer(parse_sacct(said), error)


def parse_squeue(text: str) -> dict[str, Job]:
    """Jobs by id from squeue's lines of ``SQUEUE_FIELDS``; what is no such line is passed over."""
    jobs = {}
    for line in text.splitlines():
        fields = line.split("|", 7)
        if len(fields) == 8 and re.fullmatch(r"\d+(_\d+)?", fields[0]):
            number, state, reason, elapsed, left, start, nodes, name = fields
            jobs[number] = Job(
                number, name, state, "" if reason in ("None", "(null)") else reason,
                duration_s(elapsed), duration_s(left), moment(start), hosts(nodes),
            )  # fmt: skip
    return jobs


def parse_sacct(text: str) -> dict[str, Job]:
    """Jobs by id from sacct's lines of ``SACCT_FIELDS``, steps among them; a requeued job has several, oldest first.

    A step that ran out of memory says so even where its job only failed, since the batch script went on after it.
    """
    jobs: dict[str, Job] = {}
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
        before = (*jobs[job].before, jobs[job].state) if job in jobs else ()
        seconds = int(elapsed) if elapsed.isdigit() else None
        jobs[job] = Job(job, name, state, "", seconds, None, moment(start), hosts(nodes), before, _end(code))
    return jobs


def _end(code: str) -> str:
    """Of SLURM's ``exit code:signal``."""
    exit_code, _, number = code.partition(":")
    if not exit_code.isdigit() or not number.isdigit() or code == "0:0":
        return ""
    return causes.end(-int(number) if int(number) else int(exit_code))


def duration_s(text: str) -> int | None:
    """Seconds of SLURM's ``[days-][[hours:]minutes:]seconds``; None for UNLIMITED, INVALID and the like."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text.strip())
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def moment(text: str) -> float | None:
    """Unix seconds of SLURM's local time, as 2026-11-23T22:31:00; None for N/A and Unknown."""
    try:
        return time.mktime(time.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def hosts(text: str) -> tuple[str, ...]:
    """The names that SLURM's list stands for: ``a[1-2,07-08],b`` are a1, a2, a07, a08 and b."""
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text.strip()):
        if part not in ("None assigned", "(null)"):
            pieces = [_range(piece) for piece in re.split(r"(\[[^\]]*\])", part)]
            names += map("".join, itertools.product(*pieces))
    return tuple(names)


def _range(piece: str) -> list[str]:
    if not re.fullmatch(r"\[\d+(-\d+)?(,\d+(-\d+)?)*\]", piece):
        return [piece]
    names = []
    for part in piece[1:-1].split(","):
        first, _, last = part.partition("-")
        names += [f"{k:0{len(first)}d}" for k in range(int(first), int(last or first) + 1)]
    return names


def _numbers(ids: Iterable[str]) -> str:
    """Job numbers for a command line; an array stands for all its elements."""
    return ",".join(sorted({number.partition("_")[0] for number in ids}, key=int))


def _ask(*command: str) -> tuple[str, str | None]:
    """What the command printed, and what went wrong, in one line. No setting of the user's changes what it answers."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SACCT_"))}
    env = mine | {"SLURM_TIME_FORMAT": "standard"}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S)
    except FileNotFoundError:
        return "", f"no {command[0]} on this machine: ask on the cluster's login node"
    except subprocess.TimeoutExpired:
        return "", f"{command[0]} did not answer within {ANSWER_TIMEOUT_S} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        said = re.sub(r"^\w+( error)?: (error: )?", "", lines[-1])
        return done.stdout, f"{command[0]}: {said}"
    return done.stdout, None
