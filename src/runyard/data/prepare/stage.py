"""A copy of the data on each node's own disk, made once per node and user, verified, and used by every task there."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

from runyard.config.schema import Config
from runyard.data.manifest import Manifest
from runyard.data.verified import files_read
from runyard.files import open_regular, sha256, write_atomic
from runyard.ownership import per_user_name, private_folder

FREE_SPACE_FACTOR = 1.05  # of what is copied must be free


def stage_data(config: Config, manifest: Manifest, folder: Path, start: str) -> tuple[Path, str | None]:
    """The folder to read the data from: a verified copy on this node's disk, or ``folder`` and why it is that.

    Every task of a node may call this at the same time: the first copies and verifies, the others wait for it and trust
    what it has noted. A copy that is there from an earlier start is verified once more and used again.

    Args:
        start: A name that no other start of a job has (``Dist.job``).
    """
    wanted = config.cluster.stage_data
    if wanted is None:
        return folder, None
    disk = Path(os.path.expandvars(wanted)).expanduser()
    if "$" in str(disk):
        return folder, f"cluster.stage_data={wanted}: not set on this node; reading {folder}"
    files = files_read(config, manifest)
    copy = disk / per_user_name(f"runyard-{manifest.sha256[:16]}")
    try:
        disk.mkdir(parents=True, exist_ok=True)
        private_folder(copy)  # others use this disk too: they may have made a directory of that name
        with open(copy / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            noted = copy / f"verified-{start}"
            if not (noted.exists() and json.loads(noted.read_text()) == files and _all_exist(copy, files)):
                for name, digest in files.items():
                    _copy_verified(folder / name, copy / name, digest)
                write_atomic(noted, json.dumps(files))
    except OSError as error:
        return folder, f"cluster.stage_data={wanted}: {error.strerror or error}; reading {folder}"
    return copy, None


def _all_exist(copy: Path, files: dict[str, str]) -> bool:
    return all((copy / name).exists() for name in files)


def _copy_verified(source: Path, target: Path, digest: str) -> None:
    if target.exists() and sha256(target) == digest:
        return
    with open_regular(source) as file:  # a device in its place would be copied for ever
        size = os.fstat(file.fileno()).st_size
    free = shutil.disk_usage(target.parent).free
    if free < FREE_SPACE_FACTOR * size:
        raise OSError(f"{free / 1e9:.1f} GB free in {target.parent}, and {source.name} takes {size / 1e9:.1f} GB")
    making = target.with_suffix(".making")
    try:
        shutil.copyfile(source, making)
        with open(making, "rb") as file:
            os.fsync(file.fileno())
        if sha256(making) != digest:
            raise OSError(f"{source} was copied to {making}, and reads back differently")
        making.rename(target)
    finally:
        making.unlink(missing_ok=True)
