"""When SLURM will end a job, as it says now: an administrator may raise or lower a limit while the job runs."""

from __future__ import annotations

import math
import re
import time

from runyard.slurm_client import SlurmRejected, SlurmUnavailable, run_query

END_TIME_QUERY_TIMEOUT_S = 20.0  # how long a controller may take


def query_end_time(job: str) -> float | None:
    """When ``job`` (SLURM_JOB_ID) ends, unix s by this node's clock; infinity without a limit, None if nobody can say.

    Raises:
        CannotTell: there is no squeue here, as in a container.
    """
    try:
        said = run_query("squeue", "--noheader", f"--jobs={job}", "--format=%L", timeout_s=END_TIME_QUERY_TIMEOUT_S)
    except (SlurmUnavailable, SlurmRejected):
        return None
    left_s = parse_duration_s(said.strip())
    return None if left_s is None else time.time() + left_s


def parse_duration_s(left: str) -> float | None:
    """Of a time as SLURM writes it, ``[[days-]hours:]minutes:seconds``; None for what is none, or over."""
    if left == "UNLIMITED":
        return math.inf
    found = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", left)
    if found is None:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest or None
