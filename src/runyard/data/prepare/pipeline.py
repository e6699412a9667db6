"""``runyard prepare``: from a source to verified files, all at once or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from runyard.config.data_validation import check_data
from runyard.config.schema import DataConfig
from runyard.data import beton, manifest
from runyard.data.manifest import Manifest, Split
from runyard.data.prepare import beton_writer, gather
from runyard.data.prepare.gather import ProgressCallback
from runyard.errors import UserError
from runyard.files import open_lock, sha256, sync_folder


def prepare_dataset(data: DataConfig, *, progress: bool) -> Manifest:
    """Make the prepared files of ``data`` in ``manifest.folder(data)``, or verify them (sha256 included) if they exist.

    Everything is written into a hidden folder beside the target, read back, checked and synced; then that folder gets
    its name. Of two prepares at once the second waits for the first, and verifies.

    Args:
        progress: Show a bar on standard error.

    Raises:
        UserError: bad settings, no source, damaged or odd images, or a disk that is full or cannot be written.
    """
    check_data(data)
    target = manifest.dataset_dir(data)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _progress_bar(progress) as tell, _lock(target, tell):
            work = target.with_name(f".{target.name}.making")
            _remove(work)  # left by one that was killed: the lock is ours, so it is dead
            if target.exists() or target.is_symlink():
                return _verify_existing(data, target, tell)
            try:
                work.mkdir()
                made = _write_dataset(data, work, tell)
                _sync(work)
                work.rename(target)
                sync_folder(target.parent)
                return made
            finally:
                _remove(work)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"data.root={data.root}: the disk is full; make room, or set another") from None
        raise UserError(
            f"data.root={data.root}: cannot write {target} ({error.strerror or error}); "
            "mend its permissions, or set data.root to a folder you can write"
        ) from None


def _verify_existing(data: DataConfig, target: Path, tell: ProgressCallback) -> Manifest:
    if not (target / manifest.MANIFEST_FILE).exists():
        raise UserError(
            f"{target}: exists, but was not made by runyard prepare (no {manifest.MANIFEST_FILE}); "
            "move it away, or set data.root or data.name"
        )
    made = manifest.load_manifest(target)
    tree = data.path if data.kind == "imagefolder" else None
    if made.kind != data.kind or (tree is not None and made.source != gather.tree_source(data)):
        raise UserError(
            f"{target}: prepared from {made.kind} ({made.source}), and data.kind={data.kind}, "
            f"data.path={data.path} is asked for; set data.name to another name"
        )
    for number, split in enumerate(made.splits):
        tell("verify", number, len(made.splits))
        manifest.verify_dataset(target, made, [split], hash_files=True)
    return made


def _write_dataset(data: DataConfig, work: Path, tell: ProgressCallback) -> Manifest:
    sources = work / "sources"
    sources.mkdir()
    found = (gather.layout_tree if data.kind == "imagefolder" else gather.layout_arrays)(data, work, sources, tell)
    beton_writer.write_betons(list(found.jobs.values()), tell)
    contents = {part: beton.inspect_beton(Path(job.beton)) for part, job in found.jobs.items()}
    shutil.rmtree(sources)
    if not data.arrays:
        for file in work.glob("*.npy"):
            file.unlink()
    settings = {
        key: getattr(data, key)
        for key in ("write_mode", "max_resolution", "jpeg_quality", "validation_fraction", "split_seed")
    }
    mean, std = gather.channel_mean_std(found.histogram)
    made = Manifest(
        data.name,
        data.kind,
        found.source,
        found.classes,
        data.image_size,
        mean,
        std,
        {part: _split(work, part, content.samples, data.arrays) for part, content in contents.items()},
        {**settings, **found.conversions},
        all(c.square(data.image_size) for c in contents.values()),
    )
    manifest.verify_dataset(work, made, made.splits, hash_files=False)
    (work / manifest.MANIFEST_FILE).write_text(json.dumps(manifest.manifest_to_dict(made), indent=1) + "\n")
    return made


def _split(work: Path, part: str, samples: int, arrays: bool) -> Split:
    file = work / f"{part}.beton"
    split = Split(samples, file.name, sha256(file), file.stat().st_size, None, None, {})
    if not arrays:
        return split
    names = [f"{part}_images.npy", f"{part}_labels.npy"]
    return replace(split, images=names[0], labels=names[1], arrays_sha256={name: sha256(work / name) for name in names})


def _remove(work: Path) -> None:
    if work.exists():
        shutil.rmtree(work)


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with open(file, "rb") as f:
            os.fsync(f.fileno())
    sync_folder(folder)


@contextmanager
def _lock(target: Path, tell: ProgressCallback) -> Iterator[None]:
    """One prepare of a target at a time; the kernel frees the lock of one that dies."""
    with open_lock(target.with_name(f".{target.name}.lock")) as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"wait for another {target.name}", 0, 0)
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


@contextmanager
def _progress_bar(progress: bool) -> Iterator[ProgressCallback]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not progress or not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = TextColumn("{task.description:<24}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                finish()
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done)

        def finish() -> None:
            for task in bar.tasks:
                bar.update(task.id, total=task.total or 1, completed=task.total or 1)

        yield tell
        finish()
