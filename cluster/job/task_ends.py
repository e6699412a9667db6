"""Which of a job's tasks ended first, and how, by what srun says in the job's log; what that task said last.

srun's first word is of the task that ended by itself: those that it ends for that come after.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from runyard import known_causes
from runyard.runs.journal import Row

MAX_LOG_BYTES = 4 << 20  # of a log: where tasks share it with srun they may have said much
TASK_LOG_TAIL_BYTES = 16 << 10  # of a task's own log
SRUN_EXIT_LINE = re.compile(r"^srun: error: (?P<node>[\w.-]+): tasks? (?P<task>\d+)[\d,-]*: (?P<how>.+)$", re.MULTILINE)
# As srun says it: a signal in libc's words.
SIGNALS = {"Killed": "SIGKILL", "Terminated": "SIGTERM", "Bus error": "SIGBUS", "Segmentation fault": "SIGSEGV",
           "Aborted": "SIGABRT", "Illegal instruction": "SIGILL", "Floating point exception": "SIGFPE",
           "Out Of Memory": known_causes.OUT_OF_MEMORY}  # fmt: skip
SLURM_LINE = re.compile(r"^(srun|slurmstepd\S*|\d+: slurmstepd\S*|bash|/\S+/slurm_script):? ")
EXCEPTION = re.compile(r"^(?:[\w.]+\.)?(?P<kind>[A-Z]\w*(?:Error|Exception))(?:: .*)?$")


def first_task_exit(log: Path, began: int) -> Row:
    """Of the start whose words begin at byte ``began`` of the job's error log: ``rank``, ``node``, how it ended, and
    its last line. Empty where srun says nothing of a task, or the log is no file."""
    text = _read(log, began, MAX_LOG_BYTES)
    if (found := SRUN_EXIT_LINE.search(text)) is None:
        return {}
    how = _exit_name(found["how"])
    own = log.with_name(log.name.replace("_0_log.err", f"_{found['task']}_log.err"))  # submitit's: one for each task
    said = last_line(text[: found.start()] if own == log else _read(own, 0, TASK_LOG_TAIL_BYTES))
    return {"rank": int(found["task"]), "node": found["node"]} | _failure(how, said)


def last_line(text: str) -> str:
    """What a task said last, without torch's C++ frames and SLURM's own words."""
    lines = [line for line in text.splitlines() if line.strip() and not SLURM_LINE.match(line)]
    lines = [line for line in lines if not known_causes.TORCH_FRAMES.match(line)]
    raised = [line for line in lines[-20:] if EXCEPTION.match(line)]
    return known_causes.one_line((raised or lines or [""])[-1])


def _exit_name(words: str) -> str:
    code = re.fullmatch(r"Exited with exit code (\d+)", words)
    return (
        known_causes.describe_exit(int(code[1])) if code else SIGNALS.get(words.removesuffix(" (core dumped)"), words)
    )


def _failure(how: str, said: str) -> dict[str, Any]:
    """``exception`` is the one that the task's last line names, or its exit code where that says more."""
    raised = EXCEPTION.match(said)
    exception = raised["kind"] if raised and how == "exit code 1" else how
    exception = None if how.startswith("SIG") or how == known_causes.OUT_OF_MEMORY else exception
    told = raised and exception == raised["kind"]
    cause = known_causes.classify(how, "") or (known_causes.classify(None, said) if told else None)
    message = f"{known_causes.exit_text(how)}{f': {said}' if said else ''}"
    known = {"exception": exception, "cause": cause and cause.name, "message": message}
    return {name: value for name, value in known.items() if value is not None}


def _read(log: Path, began: int, most: int) -> str:
    try:
        if not log.is_file():
            return ""
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(began, size - most))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
