"""Copies the data to each node's own disk, once per node and user; all tasks on the node use the verified copy."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from runyard.config.schema import Config
from runyard.data.manifest import Manifest
from runyard.data.verified import files_read
from runyard.file_lock import exclusive_lock
from runyard.files import open_regular, sha256, write_atomic
from runyard.ownership import per_user_name, private_folder

FREE_SPACE_FACTOR = 1.05  # times the size of a file must be free before it is copied


def stage_data(config: Config, manifest: Manifest, folder: Path, start_id: str) -> tuple[Path, str | None]:
    """Return the folder to read the data from: a verified copy on this node's disk, or ``folder`` and the reason.

    All tasks of a node may call this at the same time: the first copies and verifies, the others wait and trust its
    record. A copy from an earlier start is verified again and reused.

    Args:
        start_id: A name that no other start of a job has (``RankInfo.start_id``).
    """
    location = config.cluster.stage_data
    if location is None:
        return folder, None
    disk = Path(os.path.expanduser(os.path.expandvars(location)))
    if "$" in str(disk):
        return folder, f"cluster.stage_data={location}: not set on this node; reading {folder}"
    files = files_read(config, manifest)
    copy = disk / per_user_name(f"runyard-{manifest.sha256[:16]}")
    try:
        disk.mkdir(parents=True, exist_ok=True)
        private_folder(copy)  # other users may have created a directory of that name on this shared disk
        with exclusive_lock(copy / "lock") as lock:
            making = ".making" if lock is not None else f".making-{os.getpid()}"  # without locks each task copies
            verified_file = copy / f"verified-{start_id}"
            if not (
                verified_file.exists() and json.loads(verified_file.read_text()) == files and _all_exist(copy, files)
            ):
                for name, digest in files.items():
                    _copy_verified(folder / name, copy / name, digest, making)
                write_atomic(verified_file, json.dumps(files))
    except OSError as error:
        return folder, f"cluster.stage_data={location}: {error.strerror or error}; reading {folder}"
    return copy, None


def _all_exist(copy: Path, files: dict[str, str]) -> bool:
    return all((copy / name).exists() for name in files)


def _copy_verified(source: Path, target: Path, digest: str, making: str) -> None:
    if target.exists() and sha256(target) == digest:
        return
    with open_regular(source) as file:  # a device in its place would be copied forever
        size = os.fstat(file.fileno()).st_size
    free_bytes = shutil.disk_usage(target.parent).free
    if free_bytes < FREE_SPACE_FACTOR * size:
        raise OSError(f"{free_bytes / 1e9:.1f} GB free in {target.parent}, and {source.name} takes {size / 1e9:.1f} GB")
    tmp_path = target.with_suffix(making)
    try:
        shutil.copyfile(source, tmp_path)
        with open(tmp_path, "rb") as file:
            os.fsync(file.fileno())
        if sha256(tmp_path) != digest:
            raise OSError(f"{source} was copied to {tmp_path}, and reads back differently")
        tmp_path.rename(target)
    finally:
        tmp_path.unlink(missing_ok=True)
