"""``runyard prepare``: from a source to verified files, all at once or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runyard.config import DataConfig
from runyard.data import beton, cifar, imagefolder, manifest, synthetic, writer
from runyard.data.cifar import Arrays
from runyard.data.manifest import Manifest, Split
from runyard.data.rules import check_data
from runyard.errors import UserError
from runyard.files import sha256, sync_folder

_PAGE_BYTES = 8 << 20  # FFCV's default; an image must fit into a page
_NAMES_SHOWN = 5
Tell = Callable[[str, int, int], None]


def prepare(data: DataConfig, *, progress: bool) -> Manifest:
    """Make the prepared files of ``data`` in ``manifest.folder(data)``, or verify them (sha256 included) if they exist.

    Everything is written into a hidden folder beside the target, synced, read back and checked; then that folder gets
    its name. Of two prepares at once the second waits for the first.

    Args:
        progress: Show a bar on standard error if that is a terminal.

    Raises:
        UserError: bad settings, no source, damaged or odd images, or a disk that is full or cannot be written.
    """
    check_data(data)
    target = manifest.folder(data)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _bar(progress) as tell, _lock(target, tell):
            work = target.with_name(f".{target.name}.making")
            shutil.rmtree(work, ignore_errors=True)  # left by one that was killed: the lock is ours, so it is dead
            if target.exists() or target.is_symlink():
                return _verified(data, target, tell)
            try:
                work.mkdir()
                made = _make(data, work, tell)
                _sync(work)
                work.rename(target)
                sync_folder(target.parent)
                return made
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"data.root={data.root}: the disk is full; make room, or set data.root to another") from None
        raise UserError(f"data.root={data.root}: cannot write {target} ({error.strerror or error}); "
                        "mend its permissions, or set data.root to a folder you can write") from None


def _verified(data: DataConfig, target: Path, tell: Tell) -> Manifest:
    if not (target / manifest.FILE_NAME).exists():
        raise UserError(f"{target}: exists, and was not made by runyard prepare; move it away, or set data.root or data.name")
    made = manifest.load(target)
    if made.kind != data.kind:
        raise UserError(f"{target}: holds data.kind={made.kind}, and {data.kind} is asked for; set data.name to another name")
    if data.kind == "imagefolder" and made.source != _tree_source(data):
        raise UserError(f"{target}: prepared from {made.source}, and data.path={data.path}; set data.name to another name")
    for number, split in enumerate(made.splits):
        tell("verify", number, len(made.splits))
        manifest.verify(target, made, [split], hash_files=True)
    return made


def _make(data: DataConfig, work: Path, tell: Tell) -> Manifest:
    sources = work / "sources"
    sources.mkdir()
    if data.kind == "imagefolder":
        source, classes, jobs, report = _from_tree(data, work, sources, tell)
    else:
        source, classes, jobs, report = _from_arrays(data, work, sources, tell)
    writer.write(list(jobs.values()), tell)
    contents = {part: beton.inspect(Path(job.beton)) for part, job in jobs.items()}
    fixed = all((c.width == data.image_size).all() and (c.height == data.image_size).all() for c in contents.values())
    mean, std = report.pop("mean"), report.pop("std")
    if not data.arrays:
        for file in work.glob("*.npy"):
            file.unlink()
    shutil.rmtree(sources)
    made = Manifest(data.name, data.kind, source, classes, data.image_size, mean, std,
                    {part: _split(work, part, content.samples, data.arrays) for part, content in contents.items()},
                    {"write_mode": data.write_mode, "max_resolution": data.max_resolution, "jpeg_quality": data.jpeg_quality,
                     "validation_fraction": data.validation_fraction, "split_seed": data.split_seed, **report}, fixed)
    manifest.verify(work, made, made.splits, hash_files=False)
    (work / manifest.FILE_NAME).write_text(json.dumps(manifest.to_dict(made), indent=1) + "\n")
    return made


def _from_arrays(data: DataConfig, work: Path, sources: Path, tell: Tell
                 ) -> tuple[str, tuple[str, ...], dict[str, writer.Job], dict[str, Any]]:
    if data.kind == "synthetic":
        assert data.samples is not None and data.num_classes is not None
        parts = {part: synthetic.make(part, samples, data.num_classes, data.image_size)
                 for part, samples in zip(("train", "test"), data.samples, strict=True)}
        found = Arrays("synthetic", synthetic.classes(data.num_classes), parts)
    else:
        found = cifar.read(data, sources, lambda what: tell(what, 0, 0))
    parts = dict(found.parts)
    if data.validation_fraction:
        images, labels = parts["train"]
        kept, held = hold_out(labels, data.validation_fraction, data.split_seed)
        parts |= {"train": (images[kept], labels[kept]), "validation": (images[held], labels[held])}
    need = 2 * sum(images.nbytes for images, _ in parts.values()) + 3 * _PAGE_BYTES
    if (free := shutil.disk_usage(work).free) < need:
        raise UserError(f"data.root={data.root}: {need >> 20} MB are needed and {free >> 20} MB free; make room, or set another")
    jobs = {}
    for part, (images, labels) in parts.items():
        np.save(work / f"{part}_images.npy", images)
        np.save(work / f"{part}_labels.npy", labels)
        jobs[part] = _job(data, work, part, work / f"{part}_images.npy", images[0].nbytes)
    mean, std = moments(histogram(parts["train"][0]))
    return found.source, found.classes, jobs, {"mean": mean, "std": std}


def _from_tree(data: DataConfig, work: Path, sources: Path, tell: Tell
               ) -> tuple[str, tuple[str, ...], dict[str, writer.Job], dict[str, Any]]:
    assert data.path is not None
    tree = imagefolder.find(Path(data.path))
    parts = dict(tree.parts)
    if data.validation_fraction:
        if "validation" in parts:
            raise UserError(f"data.validation_fraction={data.validation_fraction}: {data.path} has test/ and val/, so val/ is the "
                            "validation part; set data.validation_fraction=0")
        files, labels = parts["train"]
        kept, held = hold_out(labels, data.validation_fraction, data.split_seed)
        parts |= {"train": ([files[i] for i in kept], labels[kept]), "validation": ([files[i] for i in held], labels[held])}
    jobs, odd, broken = {}, [], []
    counts = np.zeros((3, 256), np.int64)
    for part, (files, labels) in parts.items():
        side, good, largest = data.image_size, [], 0
        rows = np.lib.format.open_memmap(sources / f"{part}.npy", "w+", np.uint8, (len(files), side, side, 3)) if data.arrays else None
        with ThreadPoolExecutor(imagefolder.cpus()) as pool:
            for start in range(0, len(files), 64):
                chunk = files[start:start + 64]
                for i, seen in enumerate(pool.map(lambda f: imagefolder.look(f, side, data.max_resolution), chunk), start):
                    name = imagefolder.show(files[i].relative_to(data.path))
                    broken += [(name, seen.broken)] if seen.broken else []
                    odd += [(name, seen.odd)] if seen.odd else []
                    if seen.image is None:
                        continue
                    largest = max(largest, 3 * seen.stored_pixels)
                    counts += histogram(seen.image) if part == "train" else 0
                    if rows is not None:
                        rows[len(good)] = seen.image
                    good.append(i)
                tell(f"look at {part}", min(start + 64, len(files)), len(files))
        _refuse(data, odd, broken)
        if not good:
            raise UserError(f"data.path={data.path}: no file of {part}/ is a whole image, as {broken[0][0]}: {broken[0][1]}")
        if rows is not None:
            rows.flush()
            np.save(work / f"{part}_images.npy", rows[:len(good)])
            (sources / f"{part}.npy").unlink()
        np.save(work / f"{part}_labels.npy", labels[good])
        (sources / f"{part}.json").write_text(json.dumps([os.path.abspath(files[i]) for i in good]))
        jobs[part] = _job(data, work, part, sources / f"{part}.json", largest)
    mean, std = moments(counts)
    report: dict[str, Any] = {"mean": mean, "std": std}
    for word, found in (("converted", odd), ("skipped", broken)):
        report[word] = {"files": len(found), "kinds": dict(Counter(kind for _, kind in found).most_common(20)),
                        "first": [name for name, _ in found[:20]]}
    return _tree_source(data), tree.classes, jobs, report


def _tree_source(data: DataConfig) -> str:
    return f"folder {os.path.abspath(data.path or '')}"


def _refuse(data: DataConfig, odd: list[tuple[str, str]], broken: list[tuple[str, str]]) -> None:
    for found, policy, setting, word in ((broken, data.broken_images, "broken_images=skip leaves them out", "broken"),
                                         (odd, data.odd_images, "odd_images=convert makes them RGB", "not plain 8-bit RGB")):
        if found and policy == "refuse":
            names = ", ".join(f"{name} ({kind})" for name, kind in found[:_NAMES_SHOWN])
            more = f" and {len(found) - _NAMES_SHOWN} more" if len(found) > _NAMES_SHOWN else ""
            raise UserError(f"data.path={data.path}: {len(found)} images are {word}: {names}{more}; mend or remove them, or data.{setting}")


def _job(data: DataConfig, work: Path, part: str, images: Path, largest: int) -> writer.Job:
    page = max(_PAGE_BYTES, 1 << (2 * largest).bit_length())  # a JPEG of noise may be larger than its pixels
    return writer.Job(str(work / f"{part}.beton"), str(images), str(work / f"{part}_labels.npy"), data.image_size,
                      data.write_mode, data.max_resolution, data.jpeg_quality, page)


def _split(work: Path, part: str, samples: int, arrays: bool) -> Split:
    file = work / f"{part}.beton"
    split = Split(samples, file.name, sha256(file), file.stat().st_size, None, None, {})
    if not arrays:
        return split
    names = [f"{part}_images.npy", f"{part}_labels.npy"]
    return replace(split, images=names[0], labels=names[1], arrays_sha256={name: sha256(work / name) for name in names})


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices that stay and indices held out, both ascending: ``fraction`` of each class, drawn by ``seed``.

    Raises:
        UserError: the fraction leaves one of the two empty.
    """
    random = np.random.Generator(np.random.Philox(key=seed))
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        own = random.permutation(np.flatnonzero(labels == label))
        held[own[:round(len(own) * fraction)]] = True
    if not held.any() or len(np.unique(labels[~held])) < len(np.unique(labels)):
        raise UserError(f"data.validation_fraction={fraction}: of {len(labels)} images it holds out {int(held.sum())}, and leaves "
                        "a class or the validation part empty; choose another fraction")
    return np.flatnonzero(~held), np.flatnonzero(held)


def histogram(images: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel: uint8 [..., 3] to int64 [3, 256]."""
    return np.stack([np.bincount(images[..., c].reshape(-1), minlength=256) for c in range(3)])


def moments(counts: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel, in [0, 1]. A channel that never changes gets a deviation of 1/255."""
    values, weights = np.arange(256) / 255, counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ values
    std = np.sqrt([w @ (values - m) ** 2 for w, m in zip(weights, mean, strict=True)])
    r, g, b = (float(x) for x in mean)
    sr, sg, sb = (float(max(x, 1 / 255)) for x in std)
    return (r, g, b), (sr, sg, sb)


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with open(file, "rb") as f:
            os.fsync(f.fileno())
    sync_folder(folder)


@contextmanager
def _lock(target: Path, tell: Tell) -> Iterator[None]:
    """One prepare of a target at a time; the kernel frees the lock of one that dies."""
    with open(target.with_name(f".{target.name}.lock"), "a") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"wait for another prepare of {target.name}", 0, 0)
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


@contextmanager
def _bar(progress: bool) -> Iterator[Tell]:
    if not progress:
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done)

        yield tell
        for task in bar.tasks:
            bar.update(task.id, total=task.total or 1, completed=task.total or 1)
