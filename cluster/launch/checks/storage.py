"""Checks that the disks of runs and data have space, also by the user's quota, and do not purge old files.

Quotas are read from NYU's ``myquota`` or Lustre's ``lfs quota``, if the machine has one of them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import shutil
import time
from pathlib import Path

from runyard.cluster.launch.checks.check import CheckContext
from runyard.cluster.launch.checks.preflight import nearest_existing_dir
from runyard.errors import UserError
from runyard.slurm_client import QueryError, run_query

MIN_FREE_INODES = 1000
FULL_PCT = 95.0
PURGED_AFTER_DAYS, WARNED_BEFORE_DAYS = 60, 15
MAX_SCANNED_FILES = 50_000
DAY_S = 86_400


def run_folders(context: CheckContext) -> dict[str, Path]:
    """Return the folders that a run writes and reads, by the names of their settings."""
    return {"runs_dir": Path(context.config.runs_dir), "data.root": Path(context.config.data.root)}


def free_inodes(context: CheckContext) -> str:
    """Check that the disks accept more files: some limit their number as well as their bytes."""
    results = []
    for name, path in run_folders(context).items():
        disk = os.statvfs(nearest_existing_dir(path))
        if disk.f_files and disk.f_favail < MIN_FREE_INODES:
            raise UserError(
                f"{name}={path}: its disk takes only {disk.f_favail} more files",
                f"delete some, or set {name} elsewhere",
            )
        results.append(f"{name} {disk.f_favail:,}" if disk.f_files else f"{name} any number")
    return ", ".join(results)


def quota(context: CheckContext) -> str:
    """Check that the user's quota is not nearly used up."""
    if shutil.which("myquota"):
        used = parse_myquota(run_query("myquota"))
    elif shutil.which("lfs") and (lustre_mounts := _on_lustre(context)):
        used = {}
        for path in lustre_mounts:
            used |= parse_lfs(run_query("lfs", "quota", "-q", "-u", str(os.getuid()), str(path)))
    else:
        raise QueryError("neither myquota nor lfs is on this machine")
    if not used:
        raise QueryError("the quota command's answer cannot be read")
    file_system, pct = max(used.items(), key=lambda item: item[1])
    if pct >= FULL_PCT:
        raise UserError(
            f"your quota is {pct:.0f} % used ({file_system})", "delete some, or set runs_dir, data.root elsewhere"
        )
    return f"at most {pct:.0f} % used ({file_system})"


def parse_myquota(text: str) -> dict[str, float]:
    """Return the percentage used, of space and of files for each file system, from the lines that begin with a path."""
    used: dict[str, float] = {}
    for line in text.splitlines():
        percentages = re.findall(r"\(([\d.]+)%\)", line)
        if line.startswith("/"):
            file_system = line.split()[0]
            used |= {
                f"{what} of {file_system}": float(pct)
                for what, pct in zip(("space", "files"), percentages, strict=False)
            }
    return used


def parse_lfs(text: str) -> dict[str, float]:
    """Return the percentage used, of space and of files for one file system, from ``lfs quota -q``.

    Its fields are the path, then used, quota, limit and grace of kilobytes, and the same of files. A value over its
    quota has a star, and a long path has a line of its own.
    """
    used = {}
    tokens = text.split()
    if len(tokens) >= 9 and tokens[0].startswith("/"):
        for what, start in (("space", 1), ("files", 5)):
            in_use, soft, hard = (int(re.sub(r"\D", "", token) or 0) for token in tokens[start : start + 3])
            if limit := soft or hard:
                used[f"{what} of {tokens[0]}"] = 100 * in_use / limit
    return used


def purge_risk(context: CheckContext) -> str:
    """Check that no file on a scratch disk has been idle for so long that it will be deleted soon."""
    idle: dict[str, tuple[float, Path]] = {}
    for name, path in run_folders(context).items():
        if os.path.exists(path) and is_scratch(path) and (oldest := _longest_idle(path)) is not None:
            idle[name] = oldest
    if not idle:
        return "no folder is on a scratch disk, going by the names"
    name, (days, file) = max(idle.items(), key=lambda item: item[1][0])
    if days > PURGED_AFTER_DAYS - WARNED_BEFORE_DAYS:
        raise UserError(
            f"{name}: {file} was not read for {days:.0f} days, and scratch disks are purged after {PURGED_AFTER_DAYS}",
            f"copy what you need to a disk that is kept; data can be made again: {context.prepare_command}",
        )
    return f"longest idle {days:.0f} days ({name}), purged after {PURGED_AFTER_DAYS}"


def is_scratch(path: Path) -> bool:
    """Return whether ``path`` is on a scratch disk by convention: in $SCRATCH, or in a folder called scratch."""
    path = Path(os.path.realpath(path))
    scratch = os.environ.get("SCRATCH")
    return (scratch is not None and path.is_relative_to(os.path.realpath(scratch))) or "scratch" in path.parts


def _longest_idle(root: Path) -> tuple[float, Path] | None:
    """Return the file that was longest neither read nor written, and for how many days; large trees are cut off."""
    paths = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    last_uses = []
    for path in itertools.islice(paths, MAX_SCANNED_FILES):
        with contextlib.suppress(OSError):  # deleted meanwhile, or a broken link
            file_stat = path.stat()
            last_uses.append((max(file_stat.st_atime, file_stat.st_mtime), path))
    last_use, file = min(last_uses, default=(math.inf, root))
    return ((time.time() - last_use) / DAY_S, file) if last_uses else None


def _on_lustre(context: CheckContext) -> list[Path]:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    lustre = [Path(mount_point) for _, mount_point, kind, *_ in mounts if kind == "lustre"]
    folders = [nearest_existing_dir(path).resolve() for path in run_folders(context).values()]
    return [mount_point for mount_point in lustre if any(path.is_relative_to(mount_point) for path in folders)]
