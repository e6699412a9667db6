"""Reading a small prepared set: all steps of an epoch, as each rank sees them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runyard.config.schema import Config
from runyard.data.loading import loaders
from runyard.data.loading.batch import Batch
from runyard.data.manifest import Manifest

SIZE, TRAIN, TEST = 16, 300, 23
CPU = torch.device("cpu")


FFCVS_OWN = "ignore::pytest.PytestUnraisableExceptionWarning"  # numba, when FFCV's functions are collected


MakeConfig = Callable[..., Config]


class Images:
    """What FFCV's writer reads: images and labels by position."""

    def __init__(self, images: list[np.ndarray], labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.images[i], int(self.labels[i])


def write_beton(path: Path, images: list[np.ndarray], labels: np.ndarray, **field: Any) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(**field), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1, page_size=1 << 21).from_indexed_dataset(Images(images, labels))


def steps(
    config: Config,
    prepared: tuple[Manifest, Path],
    epoch: int = 0,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device = CPU,
) -> list[list[Batch]]:
    loader = loaders.train_loader(config, *prepared, rank=rank, world_size=world_size, device=device)
    try:
        return [[Batch(*(t.cpu() for t in batch)) for batch in step] for step in loader.epoch(epoch, start)]
    finally:
        loader.close()


def joined(epoch: list[list[Batch]]) -> Batch:
    parts = [batch for step in epoch for batch in step]
    return Batch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
