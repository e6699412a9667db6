"""Checks by SHA-256 that prepared files are unchanged, hashing each content once. Imports neither torch nor ffcv.

Reading 100 GB at every start would take minutes. So each hash is cached with the file's inode, size, mtime and ctime
(which nobody can set back), in a file that only its owner can write. An unchanged file then costs one ``stat``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from runyard.config.schema import Config
from runyard.data import manifest
from runyard.data.manifest import Manifest
from runyard.errors import UserError
from runyard.files import open_regular, write_atomic
from runyard.surroundings import cache_home

VERIFIED_FILE = ".verified.json"
SETTLE_S = 2.0  # a file that changed more recently could change again within one tick of its file system's clock
HashCache = dict[str, list[int | str]]  # by file name: its stamp and the SHA-256 that it had then


def files_read(config: Config, data: Manifest) -> dict[str, str]:
    """Return the names of the files that this configuration's loader reads, with the SHA-256 of each."""
    if config.loader == "ffcv":
        return {split.beton: split.beton_sha256 for split in data.splits.values()}
    return {name: digest for split in data.splits.values() for name, digest in split.arrays_sha256.items()}


def check_content(
    folder: Path,
    data: Manifest,
    files: dict[str, str],
    *,
    at_most_bytes: int | None = None,
    in_process: HashCache | None = None,
) -> None:
    """Refuse files that differ from the prepared ones: in size, or in SHA-256 if they changed since the last hash.

    Args:
        files: Names within ``folder``, and the SHA-256 that each must have.
        at_most_bytes: Hash nothing if there is more than this to hash.
        in_process: A cache of this process, in case no cache file can be written; it is updated.

    Raises:
        UserError: a file is missing, unreadable, or has other content; the message names it.
    """
    sizes = {split.beton: split.beton_bytes for split in data.splits.values()}
    known = _load_hash_cache(folder) | (in_process or {})
    unknown: dict[str, str] = {}
    total = 0
    for name, digest in files.items():
        with _as_user_error(folder / name), open_regular(folder / name) as file:
            file_stat = os.fstat(file.fileno())
        if name in sizes and file_stat.st_size != sizes[name]:
            raise UserError(
                f"{folder / name}: {file_stat.st_size} bytes, and {sizes[name]} were prepared: it was changed",
                manifest.DATASET_HINT,
            )
        if known.get(name) != [*_stamp(file_stat), digest]:
            unknown[name] = digest
            total += file_stat.st_size
    if not unknown or (at_most_bytes is not None and total > at_most_bytes):
        return
    for name, digest in unknown.items():
        known.pop(name, None)
        stamp, actual = _stamp_and_sha256(folder / name)
        if actual != digest:
            raise UserError(
                f"{folder / name}: its sha256 is not that of the prepared file: it was changed", manifest.DATASET_HINT
            )
        if stamp is not None:
            known[name] = [*stamp, digest]
    _save_hash_cache(folder, known)
    if in_process is not None:
        in_process.update(known)


def _stamp(file_stat: os.stat_result) -> list[int]:
    return [file_stat.st_ino, file_stat.st_size, file_stat.st_mtime_ns, file_stat.st_ctime_ns]


def _stamp_and_sha256(path: Path) -> tuple[list[int] | None, str]:
    """Return the file's stamp, or None if it changed very recently, and its SHA-256."""
    with _as_user_error(path), open_regular(path) as file:
        stat_before = os.fstat(file.fileno())
        start_time = time.time()
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        unchanged = _stamp(stat_before) == _stamp(os.fstat(file.fileno()))
    settled = max(stat_before.st_mtime, stat_before.st_ctime) < start_time - SETTLE_S
    return (_stamp(stat_before) if unchanged and settled else None), digest


@contextlib.contextmanager
def _as_user_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror})", manifest.DATASET_HINT) from None


def _cache_files(folder: Path) -> list[Path]:
    """Return the possible cache files: next to the data if this user owns them, then in this user's cache folder."""
    name = f"verified-{hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]}.json"
    user_files = [] if (home := cache_home()) is None else [home / "runyard" / name]
    return [folder / VERIFIED_FILE, *user_files] if folder.stat().st_uid == os.getuid() else user_files


def _load_hash_cache(folder: Path) -> HashCache:
    for path in _cache_files(folder):
        with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
            with open_regular(path, follow_links=False) as file:
                file_stat = os.fstat(file.fileno())
                content = file.read()
            if file_stat.st_uid == os.getuid() and not file_stat.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return dict(json.loads(content).items())
    return {}


def _save_hash_cache(folder: Path, known: HashCache) -> None:
    for path in _cache_files(folder):
        with contextlib.suppress(OSError):
            if path.parent != folder:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, json.dumps(known), mode=0o600)
            return
