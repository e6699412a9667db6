"""From a source to the plain files that the FFCV writer reads: arrays, labels, and what was measured on the way."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from runyard.config.schema import DataConfig
from runyard.data.datasets import cifar, imagefolder, synthetic
from runyard.data.datasets.cifar import ArrayDataset
from runyard.data.datasets.imagefolder import ImageInspection
from runyard.data.prepare.beton_writer import WriteJob
from runyard.errors import UserError

_PAGE_BYTES, _LEAST_PAGE_BYTES = 8 << 20, 2 << 20  # FFCV's default and least; an image must fit into a page
_AT_ONCE, _NAMES_SHOWN, _NAMES_KEPT = 64, 5, 20
ProgressCallback = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DatasetLayout:
    """A source laid out in the work folder: ``PART_images.npy`` and ``PART_labels.npy``, and a writer's job per part.

    Attributes:
        counts: int64 [3, 256], how often each value occurs in each channel of the training part.
        report: How many files were converted or left out, their kinds and first names; for image folders.
    """

    source: str
    classes: tuple[str, ...]
    jobs: dict[str, WriteJob]
    histogram: np.ndarray
    conversions: dict[str, Any]


def layout_arrays(data: DataConfig, work: Path, sources: Path, report_progress: ProgressCallback) -> DatasetLayout:
    """Lay out a set that fits into memory, CIFAR or synthetic. Downloads go into the folder ``sources``.

    Raises:
        UserError: no source has it, it is not what it should be, or the disk is too small.
    """
    if data.samples is not None and data.num_classes is not None:
        _require_disk_space(data, work, sum(data.samples) * 3 * data.image_size**2)  # before they fill the memory
        made = {
            part: synthetic.make_split(part, samples, data.num_classes, data.image_size)
            for part, samples in zip(("train", "test"), data.samples, strict=True)
        }
        found = ArrayDataset("synthetic", synthetic.class_names(data.num_classes), made)
    else:
        found = cifar.read_cifar(data, sources, lambda what: report_progress(what, 0, 0))
    parts = dict(found.splits)
    if data.validation_fraction:
        images, labels = parts["train"]
        kept, held = hold_out(labels, data.validation_fraction, data.split_seed)
        parts |= {"train": (images[kept], labels[kept]), "validation": (images[held], labels[held])}
    _require_disk_space(data, work, sum(images.nbytes for images, _ in parts.values()))
    jobs = {}
    for part, (images, labels) in parts.items():
        np.save(work / f"{part}_images.npy", images)
        np.save(work / f"{part}_labels.npy", labels)
        jobs[part] = _job(data, work, part, work / f"{part}_images.npy", images[0].nbytes, images.nbytes)
    return DatasetLayout(found.source, found.classes, jobs, histogram(parts["train"][0]), {})


def _require_disk_space(data: DataConfig, work: Path, pixel_bytes: int) -> None:
    """Room for the beton and the arrays."""
    need, free = 2 * pixel_bytes + 3 * _PAGE_BYTES, shutil.disk_usage(work).free
    if free < need:
        raise UserError(
            f"data.root={data.root}: {need >> 20} MB are needed and {free >> 20} MB are free; make room, "
            "or set data.root to another disk"
        )


def layout_tree(data: DataConfig, work: Path, sources: Path, report_progress: ProgressCallback) -> DatasetLayout:
    """Lay out a folder of images. Every file is decoded once here, so that FFCV meets only those it can store.

    Raises:
        UserError: the folder is not as it should be, or files are odd or broken where ``data`` says to refuse them.
    """
    if data.path is None:
        raise UserError(
            "data.path=null: data.kind=imagefolder is made from a folder that holds train/CLASS/*.jpg; "
            "set data.path=FOLDER"
        )
    root = Path(data.path)
    tree = imagefolder.scan_tree(root)
    parts = dict(tree.splits)
    if data.validation_fraction:
        if "validation" in parts:
            raise UserError(
                f"data.validation_fraction={data.validation_fraction}: {root} has test/ and val/, so val/ "
                "is the validation part already; set data.validation_fraction=0"
            )
        files, labels = parts["train"]
        kept, held = hold_out(labels, data.validation_fraction, data.split_seed)
        parts |= {
            "train": ([files[i] for i in kept], labels[kept]),
            "validation": ([files[i] for i in held], labels[held]),
        }
    counts, seen = {}, {}
    for part, (files, _) in parts.items():
        counts[part], seen[part] = _inspect_split(data, part, files, work, sources, report_progress)
    names = [imagefolder.printable_path(file.relative_to(root)) for files, _ in parts.values() for file in files]
    inspections = [look for part in parts for look in seen[part]]
    broken = [(name, look.problem) for name, look in zip(names, inspections, strict=True) if look.problem]
    odd = [(name, look.conversion) for name, look in zip(names, inspections, strict=True) if look.conversion]
    _refuse_images(data, odd, broken)
    jobs = {}
    for part, (files, labels) in parts.items():
        good = [i for i, look in enumerate(seen[part]) if not look.problem]
        if len(np.unique(labels[good])) < len(np.unique(labels)):
            raise UserError(
                f"data.path={root}: a class of {part}/ has no whole image; mend or remove "
                f"{broken[0][0]} ({broken[0][1]})"
            )
        np.save(work / f"{part}_labels.npy", labels[good])
        (sources / f"{part}.json").write_text(json.dumps([os.path.abspath(files[i]) for i in good]))
        sizes = [seen[part][i].stored_bytes for i in good]
        jobs[part] = _job(data, work, part, sources / f"{part}.json", max(sizes), sum(sizes))
    report = {
        word: {
            "files": len(some),
            "kinds": dict(Counter(kind for _, kind in some).most_common(_NAMES_KEPT)),
            "first": [name for name, _ in some[:_NAMES_KEPT]],
        }
        for word, some in (("converted", odd), ("skipped", broken))
    }
    return DatasetLayout(tree_source(data), tree.classes, jobs, counts["train"], report)


def tree_source(data: DataConfig) -> str:
    """How a manifest names the folder that an image folder came from."""
    return f"folder {os.path.abspath(data.path or '')}"


def _inspect_split(
    data: DataConfig, part: str, files: list[Path], work: Path, sources: Path, report_progress: ProgressCallback
) -> tuple[np.ndarray, list[ImageInspection]]:
    """Decode each file; count the values of the square images, and write these as PART_images.npy if wanted."""
    shape = (len(files), data.image_size, data.image_size, 3)
    rows = np.lib.format.open_memmap(sources / f"{part}.npy", "w+", np.uint8, shape) if data.arrays else None
    counts, good, out = np.zeros((3, 256), np.int64), 0, []
    look = partial(imagefolder.inspect_image, side=data.image_size, max_resolution=data.max_resolution)
    with ThreadPoolExecutor(imagefolder.cpus()) as pool:
        for start in range(0, len(files), _AT_ONCE):
            for image, seen in pool.map(look, files[start : start + _AT_ONCE]):
                out.append(seen)
                if image is None:
                    continue
                counts += histogram(image)
                if rows is not None:
                    rows[good] = image
                good += 1
            report_progress(f"look at {part}", len(out), len(files))
    if rows is not None:
        np.save(work / f"{part}_images.npy", rows[:good])
        (sources / f"{part}.npy").unlink()
    return counts, out


def _refuse_images(data: DataConfig, odd: list[tuple[str, str]], broken: list[tuple[str, str]]) -> None:
    for found, policy, what, fix in (
        (broken, data.broken_images, "broken or no image", "data.broken_images=skip leaves them out"),
        (odd, data.odd_images, "not plain 8-bit RGB", "data.odd_images=convert makes them so"),
    ):
        if found and policy == "refuse":
            names = ", ".join(f"{name} ({kind})" for name, kind in found[:_NAMES_SHOWN])
            more = f" and {len(found) - _NAMES_SHOWN} more" if len(found) > _NAMES_SHOWN else ""
            raise UserError(f"data.path={data.path}: {len(found)} {what}: {names}{more}; mend them; {fix}")


def _job(data: DataConfig, work: Path, part: str, images: Path, largest: int, total: int) -> WriteJob:
    least = _PAGE_BYTES if total > _PAGE_BYTES else _LEAST_PAGE_BYTES
    page = max(least, 1 << (2 * largest).bit_length())  # a JPEG of noise may be larger than its pixels
    return WriteJob(
        str(work / f"{part}.beton"),
        str(images),
        str(work / f"{part}_labels.npy"),
        data.image_size,
        data.write_mode,
        data.max_resolution,
        data.jpeg_quality,
        page,
    )


def hold_out(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices that stay and indices held out, both ascending: ``fraction`` of each class, drawn by ``seed``.

    Raises:
        UserError: the fraction leaves the validation part or a training class empty.
    """
    random = np.random.Generator(np.random.Philox(key=seed))
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        own = random.permutation(np.flatnonzero(labels == label))
        held[own[: round(len(own) * fraction)]] = True
    if not held.any() or len(np.unique(labels[~held])) < len(np.unique(labels)):
        raise UserError(
            f"data.validation_fraction={fraction}: holds out {int(held.sum())} of {len(labels)} images, "
            "which leaves the validation part or a training class empty; choose another fraction"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def histogram(images: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel: uint8 [..., 3] to int64 [3, 256]."""
    return np.stack([np.bincount(images[..., c].reshape(-1), minlength=256) for c in range(3)])


def channel_mean_std(counts: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel, in [0, 1]. A channel that never changes gets 1/255.

    ``histogram`` is a ``histogram``: whole numbers, so the result does not depend on any order of summing.
    """
    values, weights = np.arange(256) / 255, counts / counts.sum(axis=1, keepdims=True)
    means = [float(w @ values) for w in weights]
    stds = [max(float(np.sqrt(w @ (values - m) ** 2)), 1 / 255) for w, m in zip(weights, means, strict=True)]
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])
