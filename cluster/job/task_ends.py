"""Finds which of a job's tasks ended first and how, from srun's messages in the job's log, and that task's last line.

srun's first message is about the task that ended by itself; the tasks that srun then kills come after it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from runyard import known_causes
from runyard.errors import ExitCode
from runyard.runs.events import Row

MAX_LOG_BYTES = 4 << 20  # of a log: tasks that share it with srun may have written much
TASK_LOG_TAIL_BYTES = 16 << 10  # of a task's own log
SRUN_EXIT_LINE = re.compile(r"^srun: error: (?P<node>[\w.-]+): tasks? (?P<tasks>[\d,-]+): (?P<how>.+)$", re.MULTILINE)
# srun names a signal in libc's words.
SIGNALS = {"Killed": "SIGKILL", "Terminated": "SIGTERM", "Bus error": "SIGBUS", "Segmentation fault": "SIGSEGV",
           "Aborted": "SIGABRT", "Illegal instruction": "SIGILL", "Floating point exception": "SIGFPE",
           "Out Of Memory": known_causes.OUT_OF_MEMORY}  # fmt: skip
SLURM_LINE = re.compile(r"^(srun|slurmstepd\S*|\d+: slurmstepd\S*|bash|/\S+/slurm_script):? ")
EXCEPTION = re.compile(r"^(?:[\w.]+\.)?(?P<kind>[A-Z]\w*(?:Error|Exception))(?:: .*)?$")


def first_task_exit(log: Path, offset: int, task: int | None = None) -> Row:
    """Return ``rank`` and ``node`` of the task that ended first, how it ended, and its last line.

    Empty if srun reports no task's end, or the log is no regular file.

    Args:
        log: The job's error log.
        offset: The byte at which this start's output begins.
        task: Report of this task only, the only one of a run that shares the job with others.
    """
    text = _read(log, offset, MAX_LOG_BYTES)
    ends = (match for match in SRUN_EXIT_LINE.finditer(text) if task is None or task in _numbers(match["tasks"]))
    if (match := next(ends, None)) is None:
        return {}
    exit_name = _exit_name(match["how"])
    number = _numbers(match["tasks"])[0] if task is None else task
    task_log = log_of_task(log, number)
    line = last_line(text[: match.start()] if task_log == log else _read(task_log, 0, TASK_LOG_TAIL_BYTES))
    return {"rank": number if task is None else 0, "node": match["node"]} | _failure(exit_name, line)


def exit_code_of(task: int, log: Path, offset: int, srun_code: int) -> int:
    """Return the exit code of one task of several runs' job. srun's own code is that of the worst task."""
    ends = {
        number: match["how"]
        for match in SRUN_EXIT_LINE.finditer(_read(log, offset, MAX_LOG_BYTES))
        for number in _numbers(match["tasks"])
    }
    if not ends:  # srun itself failed
        return srun_code
    exited = re.fullmatch(r"Exited with exit code (\d+)", ends.get(task, "Exited with exit code 0"))
    return int(exited[1]) if exited else int(ExitCode.FAILED)


def log_of_task(log: Path, task: int) -> Path:
    """Return a task's log, as submitit names it, by the job's: that of task 0, or one apart for several runs' job."""
    return log.with_name(re.sub(r"_(?:0_log|job)(?=\.\w+$)", f"_{task}_log", log.name))


def _numbers(text: str) -> list[int]:
    """Return the numbers in SLURM's ``0,2-3``."""
    ranges = [part.partition("-") for part in text.split(",")]
    return [k for first, _, last in ranges for k in range(int(first), int(last or first) + 1)]


def last_line(text: str) -> str:
    """Return a task's last line, or the last that names an exception, without torch's C++ frames and SLURM's lines."""
    lines = [line for line in text.splitlines() if line.strip() and not SLURM_LINE.match(line)]
    lines = [line for line in lines if not known_causes.TORCH_FRAMES.match(line)]
    raised = [line for line in lines[-20:] if EXCEPTION.match(line)]
    return known_causes.one_line((raised or lines or [""])[-1])


def _exit_name(text: str) -> str:
    match = re.fullmatch(r"Exited with exit code (\d+)", text)
    return (
        known_causes.describe_exit(int(match[1])) if match else SIGNALS.get(text.removesuffix(" (core dumped)"), text)
    )


def _failure(exit_name: str, line: str) -> Row:
    """Describe a failure. ``exception`` is the one in the task's last line, or the exit code if that says more."""
    raised = EXCEPTION.match(line)
    exception = raised["kind"] if raised and exit_name == "exit code 1" else exit_name
    exception = None if exit_name.startswith("SIG") or exit_name == known_causes.OUT_OF_MEMORY else exception
    is_named = raised and exception == raised["kind"]
    cause = known_causes.classify(exit_name, "") or (known_causes.classify(None, line) if is_named else None)
    message = f"{known_causes.exit_text(exit_name)}{f': {line}' if line else ''}"
    fields = {"exception": exception, "cause": cause and cause.name, "message": message}
    return {name: value for name, value in fields.items() if value is not None}


def _read(log: Path, offset: int, max_bytes: int) -> str:
    try:
        if not log.is_file():
            return ""
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(offset, size - max_bytes))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
