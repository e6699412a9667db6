"""Asks SLURM when a job will end: an administrator may change a time limit while the job runs."""

from __future__ import annotations

import math
import re
import time

from runyard.slurm_client import SlurmRejected, SlurmUnavailable, run_query

END_TIME_QUERY_TIMEOUT_S = 20.0  # how long the controller may take to answer


def query_end_time(job: str) -> float | None:
    """Return when ``job`` (SLURM_JOB_ID) ends, unix s by this node's clock; inf without a limit, None if unknown.

    Raises:
        QueryError: squeue is not installed, for example in a container.
    """
    try:
        output = run_query("squeue", "--noheader", f"--jobs={job}", "--format=%L", timeout_s=END_TIME_QUERY_TIMEOUT_S)
    except (SlurmUnavailable, SlurmRejected):
        return None
    left_s = parse_duration_s(output.strip())
    return None if left_s is None else time.time() + left_s


def parse_duration_s(text: str) -> float | None:
    """Return the seconds of a SLURM time, ``[[days-]hours:]minutes:seconds``; None if it is zero or not a time."""
    if text == "UNLIMITED":
        return math.inf
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds or None
