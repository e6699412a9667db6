"""loader=resident on a GPU: the decoded split stays in GPU memory and is augmented there, many batches at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runyard.data.arrays import load_npy
from runyard.data.augment import device as on_device
from runyard.data.augment import params
from runyard.data.loading.batch import Batch
from runyard.data.sampler import Indices

CHUNK_PIXELS = 1 << 23  # pixels augmented at once: 8192 images of 32 px, with about 0.8 GB of intermediate results


@cache
def device_arrays(images: Path, labels: Path, identity: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return images uint8 [N, S, S, 3] and labels int64 [N] on ``device``, read once per process."""
    return torch.from_numpy(load_npy(images)).to(device), torch.from_numpy(load_npy(labels)).to(device)


class DeviceBatches:
    """A ``BatchProducer`` that queues its work on the current stream; the host never waits for it."""

    on_device = True

    def __init__(
        self, images: Path, labels: Path, identity: str, seed: int, settings: params.AugmentParams, device: torch.device
    ) -> None:
        self._images, self._labels = device_arrays(images, labels, identity, device)
        self._seed, self._settings, self._device = seed, settings, device

    def batches(self, epoch: int, shards: Iterable[Indices]) -> Iterator[Batch]:
        remaining = iter(shards)
        for shard in remaining:
            chunk_size = max(1, CHUNK_PIXELS // (self._settings.size**2 * len(shard)))
            chunk = [shard, *islice(remaining, chunk_size - 1)]
            yield from self._make(epoch, chunk)

    def close(self) -> None:
        pass

    def _make(self, epoch: int, shards: list[Indices]) -> Iterator[Batch]:
        samples = np.concatenate(shards)
        indices = on_device.to_device(samples, self._device)
        images = on_device.augment_on_device(self._images, samples, self._seed, epoch, self._settings)
        labels = self._labels[indices]
        start = 0
        for shard in shards:
            rows = slice(start, start + len(shard))
            yield Batch(images[rows], labels[rows], indices[rows])
            start = rows.stop
