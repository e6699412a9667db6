"""How fast are the loaders? Ours with the paper's augmentation, beside torch's DataLoader with torchvision's.

    python benchmarks/loader.py [--data-root data] [--repeats 5] [--json FILE]

Needs ``runyard prepare data=cifar10``. Contenders take turns, so that other load on the machine meets them alike;
figures are medians over the repeats. Everything runs on this process's CPUs, with two workers each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from runyard.config.compose import compose
from runyard.config.schema import Config
from runyard.data import manifest
from runyard.data.augment import kernels, params
from runyard.data.loading import loaders

CPU = torch.device("cpu")
WORKERS, BATCH = 2, 512
BASELINES = ("torch DataLoader + torchvision v2, tensors", "torch DataLoader + torchvision v2, PIL")


class PerImage(Dataset[tuple[Tensor, int]]):
    """CIFAR-10 in memory, each image through torchvision's v2 transforms: as a uint8 tensor, or as a PIL image.

    A PIL image is what torchvision's own data set gives, and the faster of the two at 32 px.
    """

    def __init__(self, images: Path, labels: Path, *, pil: bool) -> None:
        from torchvision.transforms import v2

        self.images = np.load(images)
        self.tensors = None if pil else torch.from_numpy(self.images).permute(0, 3, 1, 2).contiguous()
        self.labels = np.load(labels).tolist()
        self.transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.RandomCrop(32, padding=4),
                v2.RandomRotation(15),
                v2.ColorJitter(0.2, 0.2, 0.2, 0.1),
                *([v2.PILToTensor()] if pil else []),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[i]) if self.tensors is None else self.tensors[i]
        return self.transform(image), self.labels[i]


def settings(root: str, *overrides: str) -> Config:
    given = ["experiment=paper", f"data.root={root}", f"batch_size={BATCH}", f"workers={WORKERS}", *overrides]
    return compose(given).config


def images_per_s(batches: Iterator[object], at_least_s: float) -> float:
    """Images of BATCH-sized batches taken per second, in the steady state."""
    for _ in range(4 * WORKERS):  # what was made ahead at the start is not measured
        next(batches)
    began, taken = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < at_least_s:
        next(batches)
        taken += BATCH
    return taken / spent


def epochs(begin: Callable[[int], Iterable[object]]) -> Generator[object, None, None]:
    """The batches of one epoch after the other."""
    for epoch in itertools.count():
        yield from begin(epoch)


def contenders(root: str) -> dict[str, Callable[[int], Iterable[object]]]:
    """Name to a function that begins an epoch."""
    out: dict[str, Callable[[int], Iterable[object]]] = {}
    for reader in ("ffcv", "resident", "torch"):
        config = settings(root, f"loader={reader}")
        folder = manifest.dataset_dir(config.data)
        loader = loaders.train_loader(config, manifest.load_manifest(folder), folder, rank=0, world_size=1, device=CPU)
        out[f"ours, loader={reader}"] = loader.epoch
    split = manifest.load_manifest(folder).splits["train"]
    assert split.images is not None
    assert split.labels is not None
    for name in BASELINES:
        data = PerImage(folder / split.images, folder / split.labels, pil=name.endswith("PIL"))
        theirs = DataLoader(data, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, drop_last=True)
        out[name] = lambda _, theirs=theirs: theirs  # type: ignore[misc]
    return out


def kernel_figures(root: str) -> dict[str, float]:
    """Microseconds per image on one thread, for each change alone and for the paper's set."""
    config = settings(root, "loader=resident")
    folder = manifest.dataset_dir(config.data)
    prepared = manifest.load_manifest(folder)
    images, _ = loaders.open_source(config, prepared, folder, "train").read(np.arange(1))
    paper = params.augment_params(config.augment, prepared.image_size, prepared.mean)
    nothing = paper._replace(flip=0, padding=0, rotation=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
    rows = np.random.default_rng(0).permutation(len(images))[:2048]
    out = np.empty((len(rows), *images.shape[1:]), np.uint8)
    figures = {}
    for name, s in {
        "copy in random order": nothing,
        "flip": nothing._replace(flip=params.RANDOM_FLIP),
        "crop": nothing._replace(padding=4),
        "rotation, nearest": nothing._replace(rotation=paper.rotation),
        "rotation, bilinear": nothing._replace(rotation=paper.rotation, bilinear=True),
        "brightness": nothing._replace(brightness=0.2),
        "contrast": nothing._replace(contrast=0.2),
        "saturation": nothing._replace(saturation=0.2),
        "hue": nothing._replace(hue=0.1),
        "cutout": nothing._replace(cutout=8),
        "the paper's set": paper,
    }.items():
        seconds = []
        for _ in range(8):
            began = time.perf_counter()
            kernels.augment_batch(images, rows, rows, 0, 0, s, out)
            seconds.append(time.perf_counter() - began)
        figures[name] = statistics.median(seconds[1:]) / len(rows) * 1e6
    return figures


FIRST = """
import sys, time
import torch
from benchmarks.loader import CPU, loaders, manifest, settings
config = settings(sys.argv[1], "loader=" + sys.argv[2])
folder = manifest.folder(config.data)
prepared = manifest.load(folder)
began = time.perf_counter()
loader = loaders.train_loader(config, prepared, folder, rank=0, world_size=1, device=CPU)
batches = loader.epoch(0)
next(batches)
print(time.perf_counter() - began)
batches.close()
loader.close()
"""


def first_batch_s(root: str, reader: str) -> float:
    """Seconds from the end of the imports to the first batch, in a new process that finds compiled kernels on disk."""
    here = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", FIRST, root, reader], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="at least, for each contender and repeat")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    begin = contenders(options.data_root)
    speeds: dict[str, list[float]] = {name: [] for name in begin}
    for _ in range(options.repeats):
        for name, epoch in begin.items():
            batches = epochs(epoch)
            speeds[name].append(images_per_s(batches, options.seconds))
            batches.close()
            time.sleep(1)  # what its workers had begun is no load on the next
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    baseline = max(medians[name] for name in BASELINES)  # ours is held to the faster of the two
    per_op = kernel_figures(options.data_root)
    first = {
        reader: statistics.median(first_batch_s(options.data_root, reader) for _ in range(3))
        for reader in ("ffcv", "resident", "torch")
    }

    show(speeds, medians, baseline, per_op, first, load)
    if options.json:
        options.json.write_text(
            json.dumps(
                {
                    "images_per_s": speeds,
                    "ratio": {n: m / baseline for n, m in medians.items()},
                    "kernel_us": per_op,
                    "first_batch_s": first,
                    "load_average": load,
                    "cpus": len(os.sched_getaffinity(0)),
                    "torch": torch.__version__,
                },
                indent=1,
            )
        )


def show(
    speeds: dict[str, list[float]],
    medians: dict[str, float],
    baseline: float,
    per_op: dict[str, float],
    first: dict[str, float],
    load: float,
) -> None:
    console = Console(width=120)
    table = Table(
        "loader",
        "images/s",
        "least .. most",
        "ratio",
        title=f"CIFAR-10, the paper's augmentation, {WORKERS} workers, {len(os.sched_getaffinity(0))} CPUs, "
        f"batch {BATCH}, medians; load average at the start {load:.1f}",
    )
    for name, values in speeds.items():
        table.add_row(
            name,
            f"{medians[name]:,.0f}",
            f"{min(values):,.0f} .. {max(values):,.0f}",
            f"{medians[name] / baseline:.1f}x",
        )
    console.print(table)
    table = Table("kernel, one thread", "us per image", "images/s")
    for name, microseconds in per_op.items():
        table.add_row(name, f"{microseconds:.2f}", f"{1e6 / microseconds:,.0f}")
    console.print(table)
    table = Table("first batch after imports, compiled kernels on disk", "s")
    for name, seconds in first.items():
        table.add_row(f"loader={name}", f"{seconds:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
