"""Counts how often the kernel's out-of-memory killer has killed a process of this job, as the kernel itself reports."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def oom_kill_count(cgroup_file: Path = Path("/proc/self/cgroup"), cgroup_root: Path = CGROUP_ROOT) -> int | None:
    """Return the count for the control group of the SLURM job, or else of this process; None if there is no count.

    Args:
        cgroup_file: The file in /proc that lists the control groups of a process.
        cgroup_root: Where they are mounted: version 2, or version 1 with its memory controller.
    """
    try:
        lines = cgroup_file.read_text().splitlines()
    except OSError:
        return None
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers not in ("", "memory"):
            continue
        folder, file = (cgroup_root / "memory", "memory.oom_control") if controllers else (cgroup_root, "memory.events")
        job_group = re.sub(r"(/job_\d+)/.*", r"\1", path).strip("/")
        for group in (folder / job_group, folder):  # a container sees its own group as the first one
            with contextlib.suppress(OSError):
                if match := re.search(r"^oom_kill (\d+)$", (group / file).read_text(), re.MULTILINE):
                    return int(match[1])
    return None


class OomMonitor:
    """Reports whether the out-of-memory killer has struck since this object was created."""

    def __init__(self) -> None:
        self._initial_count = oom_kill_count()

    def message(self) -> str | None:
        """Return a message if it has struck; None if it has not, or if there is no count."""
        count = oom_kill_count()
        if count is None or self._initial_count is None or count <= self._initial_count:
            return None
        return "the kernel's out-of-memory killer struck"
