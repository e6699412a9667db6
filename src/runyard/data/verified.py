"""Whether prepared files still hold what was prepared: by their sha256, once for each content. No torch, no ffcv.

Reading 100 GB at every start would cost minutes. So what was hashed is remembered by inode, size and times of change
(which nobody can set back), in a file that only its owner can write: then an unchanged file costs one ``stat``.
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
from typing import Any

from runyard.config.schema import Config
from runyard.data import manifest
from runyard.data.manifest import Manifest
from runyard.errors import UserError
from runyard.files import open_regular, write_atomic

VERIFIED_FILE = ".verified.json"
SETTLE_S = 2.0  # a file changed so lately could change again within one tick of its file system's clock
HashCache = dict[str, list[Any]]  # by file name: its stamp, and the sha256 it had then


def files_read(config: Config, data: Manifest) -> dict[str, str]:
    """The files that this configuration's loader reads, by name, and each one's sha256."""
    if config.loader == "ffcv":
        return {part.beton: part.beton_sha256 for part in data.splits.values()}
    return {name: digest for part in data.splits.values() for name, digest in part.arrays_sha256.items()}


def check_content(
    folder: Path,
    data: Manifest,
    files: dict[str, str],
    *,
    at_most_bytes: int | None = None,
    in_process: HashCache | None = None,
) -> None:
    """Refuse files that are not what was prepared: by size and, where they changed since they were last hashed, sha256.

    Args:
        files: Names within ``folder``, and the sha256 that each must have.
        at_most_bytes: Hash nothing if there is more than this to hash.
        in_process: What this process remembers, for where no file can be written; it is brought up to date.

    Raises:
        UserError: one is missing, unreadable, or holds something else; it is named.
    """
    sizes = {part.beton: part.beton_bytes for part in data.splits.values()}
    known = _load_hash_cache(folder) | (in_process or {})
    unknown: dict[str, str] = {}
    total = 0
    for name, digest in files.items():
        with _as_user_error(folder / name), open_regular(folder / name) as file:
            found = os.fstat(file.fileno())
        if name in sizes and found.st_size != sizes[name]:
            raise UserError(
                f"{folder / name}: {found.st_size} bytes, and {sizes[name]} were prepared: it was changed; "
                f"{manifest.DATASET_HINT}"
            )
        if known.get(name) != [*_stamp(found), digest]:
            unknown[name] = digest
            total += found.st_size
    if not unknown or (at_most_bytes is not None and total > at_most_bytes):
        return
    for name, digest in unknown.items():
        known.pop(name, None)
        stamp, given = _stamp_and_sha256(folder / name)
        if given != digest:
            raise UserError(
                f"{folder / name}: its sha256 is not that of what was prepared: it was changed; {manifest.DATASET_HINT}"
            )
        if stamp is not None:
            known[name] = [*stamp, digest]
    _save_hash_cache(folder, known)
    if in_process is not None:
        in_process.update(known)


def _stamp(found: os.stat_result) -> list[int]:
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _stamp_and_sha256(path: Path) -> tuple[list[int] | None, str]:
    """The file's stamp, None if it changed lately, and its sha256."""
    with _as_user_error(path), open_regular(path) as file:
        before = os.fstat(file.fileno())
        began = time.time()
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        same = _stamp(before) == _stamp(os.fstat(file.fileno()))
    settled = max(before.st_mtime, before.st_ctime) < began - SETTLE_S
    return (_stamp(before) if same and settled else None), digest


@contextlib.contextmanager
def _as_user_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror}); {manifest.DATASET_HINT}") from None


def _cache_files(folder: Path) -> list[Path]:
    """Where it is remembered: beside the data, where that is ours; else, or where we cannot write, in our own cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "runyard"
    ours = cache / f"verified-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.json"
    return [folder / VERIFIED_FILE, ours] if folder.stat().st_uid == os.getuid() else [ours]


def _load_hash_cache(folder: Path) -> HashCache:
    for place in _cache_files(folder):
        with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):
            with open_regular(place, follow_links=False) as file:
                about = os.fstat(file.fileno())
                content = file.read()
            if about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return dict(json.loads(content).items())
    return {}


def _save_hash_cache(folder: Path, known: HashCache) -> None:
    for place in _cache_files(folder):
        with contextlib.suppress(OSError):
            if place.parent != folder:
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(place, json.dumps(known), mode=0o600)
            return
