"""``runyard prepare``: converts a source to verified files, completely or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from runyard.config.data_validation import check_data
from runyard.config.schema import DataConfig
from runyard.data import beton, manifest
from runyard.data.manifest import Manifest, Split
from runyard.data.prepare import beton_writer, gather
from runyard.data.prepare.gather import ProgressCallback
from runyard.errors import UserError
from runyard.file_lock import exclusive_lock
from runyard.files import file_fix, sha256, sync_folder


def prepare_dataset(data: DataConfig, *, progress: bool) -> Manifest:
    """Write the prepared files of ``data`` to ``dataset_dir(data)``, or verify them, with SHA-256, if they exist.

    Everything is written into a hidden folder next to the target, read back, checked and synced. Then that folder is
    renamed to the target. If two processes prepare the same data set, the second waits for the first, and verifies.
    Where everything exists, nothing is opened for writing: a read-only or another user's folder is verified as well.

    Args:
        progress: Show a progress bar on standard error.

    Raises:
        UserError: wrong settings, no source, damaged or odd images, or a disk that is full or cannot be written.
    """
    check_data(data)
    target = manifest.dataset_dir(data)
    with _progress_bar(progress) as report_progress:
        if _is_there(target):
            return _verify_existing(data, target, report_progress)
        return _write(data, target, report_progress)


def _write(data: DataConfig, target: Path, report_progress: ProgressCallback) -> Manifest:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _work_folder(target, report_progress) as work:
            if _is_there(target):  # written by another process meanwhile
                return _verify_existing(data, target, report_progress)
            work.mkdir()
            prepared = _write_dataset(data, work, report_progress)
            _sync(work)
            try:
                work.rename(target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                return _verify_existing(data, target, report_progress)
            sync_folder(target.parent)
            return prepared
    except OSError as error:
        raise UserError(
            f"data.root={data.root}: cannot write {target} ({error.strerror or error})",
            f"{file_fix(error)}, or set data.root to a folder that you can write",
        ) from None


def _is_there(target: Path) -> bool:
    try:
        target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"{target}: cannot read it ({error.strerror})", file_fix(error)) from None
    return True


def _verify_existing(data: DataConfig, target: Path, report_progress: ProgressCallback) -> Manifest:
    try:
        return _verify(data, target, report_progress)
    except OSError as error:
        raise UserError(f"{error.filename or target}: cannot read it ({error.strerror})", file_fix(error)) from None


def _verify(data: DataConfig, target: Path, report_progress: ProgressCallback) -> Manifest:
    if not (target / manifest.MANIFEST_FILE).exists():
        raise UserError(
            f"{target}: exists, but was not made by runyard prepare (no {manifest.MANIFEST_FILE})",
            "move it away, or set data.root or data.name",
        )
    prepared = manifest.load_manifest(target)
    tree_path = data.path if data.kind == "imagefolder" else None
    if prepared.kind != data.kind or (tree_path is not None and prepared.source != gather.tree_source(data)):
        raise UserError(
            f"{target}: prepared from {prepared.kind} ({prepared.source}), and data.kind={data.kind}, "
            f"data.path={data.path} is requested",
            "set data.name to another name",
        )
    for number, split in enumerate(prepared.splits):
        report_progress("verify", number, len(prepared.splits))
        manifest.verify_dataset(target, prepared, [split], hash_files=True)
    return prepared


def _write_dataset(data: DataConfig, work: Path, report_progress: ProgressCallback) -> Manifest:
    sources = work / "sources"
    sources.mkdir()
    layout = (gather.layout_tree if data.kind == "imagefolder" else gather.layout_arrays)(
        data, work, sources, report_progress
    )
    beton_writer.write_betons(list(layout.jobs.values()), report_progress)
    contents = {name: beton.inspect_beton(Path(job.beton)) for name, job in layout.jobs.items()}
    shutil.rmtree(sources)
    if not data.arrays:
        for file in work.glob("*.npy"):
            file.unlink()
    settings = {
        key: getattr(data, key)
        for key in (
            "write_mode",
            "max_resolution",
            "jpeg_quality",
            "validation_fraction",
            "test_fraction",
            "split_seed",
        )
    }
    mean, std = gather.channel_mean_std(layout.histogram)
    prepared = Manifest(
        data.name,
        data.kind,
        layout.source,
        layout.classes,
        data.image_size,
        mean,
        std,
        {name: _split(work, name, content.samples, data.arrays) for name, content in contents.items()},
        {**settings, **layout.conversions},
        all(c.square(data.image_size) for c in contents.values()),
    )
    manifest.verify_dataset(work, prepared, prepared.splits, hash_files=False)
    (work / manifest.MANIFEST_FILE).write_text(json.dumps(manifest.manifest_to_dict(prepared), indent=1) + "\n")
    return prepared


def _split(work: Path, split_name: str, samples: int, arrays: bool) -> Split:
    file = work / f"{split_name}.beton"
    split = Split(samples, file.name, sha256(file), file.stat().st_size, None, None, {})
    if not arrays:
        return split
    names = [f"{split_name}_images.npy", f"{split_name}_labels.npy"]
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
def _work_folder(target: Path, report_progress: ProgressCallback) -> Iterator[Path]:
    """Yield a folder to write into, which is removed at the end. A lock lets one process at a time prepare a target.

    Without locks each process has a folder of its own, and the one that is complete first becomes the target.
    """
    work = target.with_name(f".{target.name}.making")
    lock_file = target.with_name(f".{target.name}.lock")
    with exclusive_lock(lock_file, on_wait=lambda: report_progress(f"wait for lock {target.name}", 0, 0)) as lock:
        if lock is None:
            work = work.with_name(f"{work.name}-{os.uname().nodename}-{os.getpid()}")
        _remove(work)  # left by a killed process: this one has the lock or its process id, so that one is dead
        try:
            yield work
        finally:
            _remove(work)


@contextmanager
def _progress_bar(progress: bool) -> Iterator[ProgressCallback]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not progress or not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = TextColumn("{task.description:<24}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def report_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                finish()
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done)

        def finish() -> None:
            for task in bar.tasks:
                bar.update(task.id, total=task.total or 1, completed=task.total or 1)

        yield report_progress
        finish()
