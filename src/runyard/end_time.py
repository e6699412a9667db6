"""When SLURM will end a job, as it says now: an administrator may raise or lower a limit while the job runs."""

from __future__ import annotations

import math
import os
import re
import subprocess
import time

ANSWER_S = 20.0  # how long a controller may take
DISPLAY = ("SQUEUE_", "SLURM_TIME_FORMAT", "SLURM_CLUSTERS")  # people's settings of what squeue shows


def asked(job: str) -> float | None:
    """When ``job`` (SLURM_JOB_ID) ends, unix s by this node's clock; infinity without a limit, None if nobody can say.

    Raises:
        FileNotFoundError: there is no squeue here, as in a container.
    """
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%L"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(DISPLAY)}
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER_S
        )
    except (PermissionError, BlockingIOError, subprocess.TimeoutExpired):
        return None
    left_s = seconds(done.stdout.strip()) if done.returncode == 0 else None
    return None if left_s is None else time.time() + left_s


def seconds(left: str) -> float | None:
    """Of a time as SLURM writes it, ``[[days-]hours:]minutes:seconds``; None for what is none, or over."""
    if left == "UNLIMITED":
        return math.inf
    found = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", left)
    if found is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest or None
