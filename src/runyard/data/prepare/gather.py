"""Converts a source into the plain files that the FFCV writer reads, and computes statistics of its images."""

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

import numpy as np

from runyard.config.schema import DataConfig
from runyard.data.datasets import cifar, image_tree, imagefolder, synthetic
from runyard.data.datasets.cifar import ArrayDataset
from runyard.data.datasets.imagefolder import ImageInspection
from runyard.data.prepare.beton_writer import WriteJob
from runyard.errors import UserError

_PAGE_BYTES, _MIN_PAGE_BYTES = 8 << 20, 2 << 20  # FFCV's default and minimum; an image must fit into a page
_FILES_AT_ONCE, _NAMES_SHOWN, _NAMES_KEPT = 64, 5, 20
ProgressCallback = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DatasetLayout:
    """A source in the work folder: ``SPLIT_images.npy`` and ``SPLIT_labels.npy``, and a write job for each split.

    Attributes:
        histogram: int64 [3, 256], how often each value occurs in each channel of the training split.
        conversions: For image folders: how many files were converted or skipped, their kinds and first names.
    """

    source: str
    classes: tuple[str, ...]
    jobs: dict[str, WriteJob]
    histogram: np.ndarray
    conversions: dict[str, dict[str, object]]


def layout_arrays(data: DataConfig, work: Path, sources: Path, report_progress: ProgressCallback) -> DatasetLayout:
    """Write the plain files of a data set that fits into memory, CIFAR or synthetic. Downloads go into ``sources``.

    Raises:
        UserError: no source has the data, they have the wrong content, or the disk is too small.
    """
    if data.samples is not None and data.num_classes is not None:
        _require_disk_space(data, work, sum(data.samples) * 3 * data.image_size**2)  # before the images fill the memory
        synthetic_splits = {
            split: synthetic.make_split(split, samples, data.num_classes, data.image_size)
            for split, samples in zip(("train", "test"), data.samples, strict=True)
        }
        dataset = ArrayDataset("synthetic", synthetic.class_names(data.num_classes), synthetic_splits)
    else:
        dataset = cifar.read_cifar(data, sources, lambda what: report_progress(what, 0, 0))
    splits = dict(dataset.splits)
    if data.validation_fraction:
        images, labels = splits["train"]
        retained, held_out = hold_out(labels, data.validation_fraction, data.split_seed)
        splits |= {"train": (images[retained], labels[retained]), "validation": (images[held_out], labels[held_out])}
    _require_disk_space(data, work, sum(images.nbytes for images, _ in splits.values()))
    jobs = {}
    for split, (images, labels) in splits.items():
        np.save(work / f"{split}_images.npy", images)
        np.save(work / f"{split}_labels.npy", labels)
        jobs[split] = _job(data, work, split, work / f"{split}_images.npy", images[0].nbytes, images.nbytes)
    return DatasetLayout(dataset.source, dataset.classes, jobs, histogram(splits["train"][0]), {})


def _require_disk_space(data: DataConfig, work: Path, pixel_bytes: int) -> None:
    """Check that the disk has space for the .beton files and the arrays."""
    required_bytes, free_bytes = 2 * pixel_bytes + 3 * _PAGE_BYTES, shutil.disk_usage(work).free
    if free_bytes < required_bytes:
        raise UserError(
            f"data.root={data.root}: {required_bytes >> 20} MB are needed and {free_bytes >> 20} MB are free",
            "make room, or set data.root to another disk",
        )


def layout_tree(data: DataConfig, work: Path, sources: Path, report_progress: ProgressCallback) -> DatasetLayout:
    """Write the plain files of an image folder. Every file is decoded once, so FFCV gets only files that it can store.

    Raises:
        UserError: the folder has the wrong structure, or files are odd or broken and ``data`` says to refuse them.
    """
    if data.path is None:
        raise UserError(
            "data.path=null: data.kind=imagefolder reads a folder with train/CLASS/*.jpg", "set data.path=FOLDER"
        )
    root = Path(data.path)
    tree = image_tree.scan_tree(root, test_fraction=data.test_fraction)
    splits, held_out_names = _hold_out_files(data, root, tree)
    histograms, by_split = {}, {}
    for split, (files, _) in splits.items():
        histograms[split], by_split[split] = _inspect_split(data, split, files, work, sources, report_progress)
    names = [imagefolder.printable_path(file.relative_to(root)) for files, _ in splits.values() for file in files]
    inspections = [inspection for split in splits for inspection in by_split[split]]
    broken = [
        (name, inspection.problem) for name, inspection in zip(names, inspections, strict=True) if inspection.problem
    ]
    odd = [
        (name, inspection.conversion)
        for name, inspection in zip(names, inspections, strict=True)
        if inspection.conversion
    ]
    _refuse_images(data, odd, broken)
    jobs = {}
    for split, (files, labels) in splits.items():
        readable = [i for i, inspection in enumerate(by_split[split]) if not inspection.problem]
        if len(np.unique(labels[readable])) < len(np.unique(labels)):
            raise UserError(
                f"data.path={root}: a class of {split}/ has no readable image",
                f"fix or remove {broken[0][0]} ({broken[0][1]})",
            )
        np.save(work / f"{split}_labels.npy", labels[readable])
        (sources / f"{split}.json").write_text(json.dumps([os.path.abspath(files[i]) for i in readable]))
        sizes = [by_split[split][i].stored_bytes for i in readable]
        jobs[split] = _job(data, work, split, sources / f"{split}.json", max(sizes), sum(sizes))
    conversions: dict[str, dict[str, object]] = {
        outcome: {
            "files": len(images),
            "kinds": dict(Counter(kind for _, kind in images).most_common(_NAMES_KEPT)),
            "first": [name for name, _ in images[:_NAMES_KEPT]],
        }
        for outcome, images in (("converted", odd), ("skipped", broken), ("left_out", tree.left_out))
    }
    if held_out_names:
        conversions["held_out"] = held_out_names
    return DatasetLayout(tree_source(data), tree.classes, jobs, histograms["train"], conversions)


def _hold_out_files(
    data: DataConfig, root: Path, tree: image_tree.ImageTree
) -> tuple[dict[str, tuple[list[Path], np.ndarray]], dict[str, object]]:
    """Return the splits with what is held out of the training images, and the names of these by split."""
    splits = dict(tree.splits)
    names: dict[str, object] = {}
    if data.validation_fraction and "validation" in splits:
        raise UserError(
            f"data.validation_fraction={data.validation_fraction}: {root} has a validation split already",
            "set data.validation_fraction=0",
        )
    for split, fraction in (("test", data.test_fraction), ("validation", data.validation_fraction)):
        if not fraction:
            continue
        files, labels = splits["train"]
        retained, held_out = hold_out(labels, fraction, data.split_seed, split)
        splits |= {
            "train": ([files[i] for i in retained], labels[retained]),
            split: ([files[i] for i in held_out], labels[held_out]),
        }
        names[split] = [imagefolder.printable_path(files[i].relative_to(root)) for i in held_out]
    order = [split for split in ("train", "test", "validation") if split in splits]
    return {split: splits[split] for split in order}, names


def tree_source(data: DataConfig) -> str:
    """Return the source of an image folder as the manifest describes it."""
    return f"folder {os.path.abspath(data.path or '')}"


def _inspect_split(
    data: DataConfig, split: str, files: list[Path], work: Path, sources: Path, report_progress: ProgressCallback
) -> tuple[np.ndarray, list[ImageInspection]]:
    """Decode and inspect each file, sum the histograms of the square images, and write these if ``data.arrays``."""
    shape = (len(files), data.image_size, data.image_size, 3)
    rows = np.lib.format.open_memmap(sources / f"{split}.npy", "w+", np.uint8, shape) if data.arrays else None
    histogram_sum, written, inspections = np.zeros((3, 256), np.int64), 0, []
    inspect = partial(imagefolder.inspect_image, side=data.image_size, max_resolution=data.max_resolution)
    with ThreadPoolExecutor(imagefolder.cpus()) as pool:
        for start in range(0, len(files), _FILES_AT_ONCE):
            for image, inspection in pool.map(inspect, files[start : start + _FILES_AT_ONCE]):
                inspections.append(inspection)
                if image is None:
                    continue
                histogram_sum += histogram(image)
                if rows is not None:
                    rows[written] = image
                written += 1
            report_progress(f"inspect {split}", len(inspections), len(files))
    if rows is not None:
        np.save(work / f"{split}_images.npy", rows[:written])
        (sources / f"{split}.npy").unlink()
    return histogram_sum, inspections


def _refuse_images(data: DataConfig, odd: list[tuple[str, str]], broken: list[tuple[str, str]]) -> None:
    for images, policy, problem, fix in (
        (broken, data.broken_images, "broken or not images", "data.broken_images=skip leaves them out"),
        (odd, data.odd_images, "not plain 8-bit RGB", "data.odd_images=convert converts them"),
    ):
        if images and policy == "refuse":
            names = ", ".join(f"{name} ({kind})" for name, kind in images[:_NAMES_SHOWN])
            more = f" and {len(images) - _NAMES_SHOWN} more" if len(images) > _NAMES_SHOWN else ""
            raise UserError(f"data.path={data.path}: {len(images)} {problem}: {names}{more}", f"fix them, or: {fix}")


def _job(data: DataConfig, work: Path, split: str, images: Path, largest: int, total: int) -> WriteJob:
    min_page_bytes = _PAGE_BYTES if total > _PAGE_BYTES else _MIN_PAGE_BYTES
    page_bytes = max(min_page_bytes, 1 << (2 * largest).bit_length())  # a JPEG of noise may be larger than its pixels
    return WriteJob(
        str(work / f"{split}.beton"),
        str(images),
        str(work / f"{split}_labels.npy"),
        data.image_size,
        data.write_mode,
        data.max_resolution,
        data.jpeg_quality,
        page_bytes,
    )


def hold_out(
    labels: np.ndarray, fraction: float, seed: int, split: str = "validation"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the remaining and the held-out indices, int64, ascending: ``fraction`` of each class, sampled by ``seed``.

    Raises:
        UserError: the fraction leaves ``split`` or a training class empty.
    """
    generator = np.random.Generator(np.random.Philox(key=seed if split == "validation" else [seed, 1]))
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        class_indices = generator.permutation(np.flatnonzero(labels == label))
        held_out[class_indices[: round(len(class_indices) * fraction)]] = True
    if not held_out.any() or len(np.unique(labels[~held_out])) < len(np.unique(labels)):
        raise UserError(
            f"data.{split}_fraction={fraction}: holds out {int(held_out.sum())} of {len(labels)} images, "
            f"which leaves the {split} split or a training class empty",
            "choose another fraction",
        )
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def histogram(images: np.ndarray) -> np.ndarray:
    """Count how often each value occurs in each channel: uint8 [..., 3] to int64 [3, 256]."""
    return np.stack([np.bincount(images[..., c].reshape(-1), minlength=256) for c in range(3)])


def channel_mean_std(counts: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of each channel, in [0, 1]; the deviation is at least 1/255.

    ``counts`` comes from ``histogram``. Its sums of whole numbers are exact, so their order does not matter.
    """
    values, weights = np.arange(256) / 255, counts / counts.sum(axis=1, keepdims=True)
    means = [float(w @ values) for w in weights]
    stds = [max(float(np.sqrt(w @ (values - m) ** 2)), 1 / 255) for w, m in zip(weights, means, strict=True)]
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])
