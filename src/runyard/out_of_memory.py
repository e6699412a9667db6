"""How often the kernel's out-of-memory killer has struck among this job's processes: its own count, never a guess."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")


def oom_kill_count(own: Path = Path("/proc/self/cgroup"), groups: Path = CGROUP_ROOT) -> int | None:
    """The count of this process's control group, of the whole SLURM job where it is in one; None where none is kept.

    Args:
        own: Which control groups a process is in, as /proc has it.
        groups: Where they are mounted: version 2, or version 1 with its memory controller.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers not in ("", "memory"):
            continue
        folder, file = (groups / "memory", "memory.oom_control") if controllers else (groups, "memory.events")
        of_the_job = re.sub(r"(/job_\d+)/.*", r"\1", path).strip("/")
        for group in (folder / of_the_job, folder):  # a container sees its own group as the first one
            with contextlib.suppress(OSError):
                if found := re.search(r"^oom_kill (\d+)$", (group / file).read_text(), re.MULTILINE):
                    return int(found[1])
    return None


class OomMonitor:
    """Whether the killer has struck since this was made."""

    def __init__(self) -> None:
        self._initial_count = oom_kill_count()

    def message(self) -> str | None:
        """What to say of it; None where it has not, or nobody counts."""
        now = oom_kill_count()
        if now is None or self._initial_count is None or now <= self._initial_count:
            return None
        return "the kernel's out-of-memory killer struck"
