"""Batches for training and evaluation from one of three readers, all of which give the same images.

loader=ffcv reads an FFCV file with threads, loader=torch reads plain arrays with DataLoader processes, and
loader=resident keeps the decoded data set on the device. Order and augmentation are pure functions of (seed, epoch,
sample), so no image depends on the reader, the number of workers or ranks, or a restart within an epoch.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from runyard.config.schema import Config
from runyard.data.arrays import ArraySource, Pixels, Source
from runyard.data.augment import kernels, params
from runyard.data.loading.batch import Batch
from runyard.data.loading.prefetch import Prefetch, Transfer
from runyard.data.manifest import Manifest
from runyard.data.sampler import Indices, epoch_permutation, evaluation_indices, rank_indices, steps_per_epoch
from runyard.errors import UserError

MIN_IMAGES_PER_THREAD = 32  # for fewer images per thread the overhead is too high


class BatchProducer(Protocol):
    """Reads and augments one batch for each shard, an array of sample positions int64 [b]."""

    on_device: bool  # whether its batches are already on the device, and the host need not wait for them

    def batches(self, epoch: int, shards: Iterable[Indices]) -> Iterator[Batch]: ...

    def close(self) -> None: ...


def train_loader(
    config: Config, manifest: Manifest, folder: Path, *, rank: int, world_size: int, device: torch.device
) -> TrainLoader:
    """Return the loader ``config.loader`` for the split "train".

    Raises:
        UserError: the batch is larger than the split, or the files this loader reads were not prepared.
    """
    producer = _batch_producer(config, manifest, folder, device)
    return TrainLoader(config, manifest.splits["train"].samples, producer, rank, world_size, device)


def evaluation_batches(
    config: Config,
    manifest: Manifest,
    folder: Path,
    split: str,
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    start: int = 0,
) -> Generator[Batch]:
    """Yield this rank's shard of ``split`` in order, without augmentation, from batch ``start`` on.

    The last batch may be smaller; a shard may be empty.
    """
    shard = evaluation_indices(manifest.splits[split].samples, rank, world_size)
    first = start * config.eval_batch_size
    shards = [shard[i : i + config.eval_batch_size] for i in range(first, len(shard), config.eval_batch_size)]
    if config.loader == "resident" and device.type == "cuda":
        from runyard.data.loading.resident import device_arrays

        images, labels = device_arrays(*_array_files(config, manifest, folder, split), device)
        for indices in shards:
            rows = slice(int(indices[0]), int(indices[-1]) + 1)
            yield Batch(images[rows], labels[rows], torch.arange(rows.start, rows.stop, device=device))
        return
    source, transfer = open_source(config, manifest, folder, split), Transfer(device)
    with Prefetch(transfer.start_copy([_unaugmented_batch(source, indices)]) for indices in shards) as prefetched:
        for transferred in prefetched:
            yield transfer.wait_for_copy(transferred)[0]


def sample_images(config: Config, manifest: Manifest, folder: Path, split: str, indices: Iterable[int]) -> Pixels:
    """Return the images of ``split`` at these positions, without augmentation: uint8 [n, S, S, 3]."""
    requested = np.fromiter(indices, np.int64)
    images, rows = open_source(config, manifest, folder, split).read(requested)
    return images[rows]


def open_source(config: Config, manifest: Manifest, folder: Path, split: str) -> Source:
    """Open the files of ``split`` that ``config.loader`` reads, once per process."""
    if config.loader == "ffcv":
        files = manifest.splits[split]
        return _beton_source(folder / files.beton, files.beton_sha256, manifest.image_size)
    images, labels, identity = _array_files(config, manifest, folder, split)
    return _array_source(images, labels, identity, config.loader == "resident")


def default_workers() -> int:
    """Return the CPUs of this task, to which torch's threads were set, minus one for the training thread."""
    return max(1, torch.get_num_threads() - 1)


class TrainLoader:
    """Cuts the order of an epoch into this rank's shards, prefetches their batches, and measures waiting time.

    Attributes:
        steps: Optimizer steps per epoch.
        wait_s: Seconds that the consumer has waited for batches, over all epochs.
    """

    def __init__(
        self, config: Config, samples: int, producer: BatchProducer, rank: int, world_size: int, device: torch.device
    ) -> None:
        self.steps = steps_per_epoch(samples, config.batch_size)
        self.wait_s = 0.0
        self._config, self._samples, self._producer = config, samples, producer
        self._rank, self._world_size = rank, world_size
        self._transfer = Transfer(device)
        self._running: Prefetch[tuple[list[Batch], torch.cuda.Event | None]] | None = None

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[Batch]]:
        """Yield this rank's batches from ``start_step`` on: ``accumulate`` micro-batches for each optimizer step."""
        micro_batches = self._micro_batches(epoch, start_step)
        if self._producer.on_device:
            yield from micro_batches
            return
        self._stop()
        self._running = running = Prefetch(map(self._transfer.start_copy, micro_batches))
        try:
            while True:
                wait_start = time.perf_counter()
                try:
                    transferred = next(running)
                except StopIteration:
                    return
                finally:
                    self.wait_s += time.perf_counter() - wait_start
                yield self._transfer.wait_for_copy(transferred)
        finally:
            running.close()

    def close(self) -> None:
        """End threads and processes."""
        self._stop()
        self._producer.close()

    def _micro_batches(self, epoch: int, start_step: int) -> Iterator[list[Batch]]:
        c = self._config
        order = epoch_permutation(c.seed, epoch, self._samples)
        shards = (
            shard
            for step in range(start_step, self.steps)
            for shard in rank_indices(order, step, c.batch_size, self._rank, self._world_size, c.accumulate)
        )
        batches = self._producer.batches(epoch, shards)
        while step := list(islice(batches, c.accumulate)):
            yield step

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()


class _Threads:
    """A ``BatchProducer`` in this process: ``workers`` threads, without the interpreter lock, share each batch."""

    on_device = False

    def __init__(
        self, source: Source, seed: int, settings: params.AugmentParams, workers: int, *, pinned: bool
    ) -> None:
        self._source, self._seed, self._settings, self._workers, self._pinned = source, seed, settings, workers, pinned
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="runyard-augment") if workers > 1 else None

    def batches(self, epoch: int, shards: Iterable[Indices]) -> Iterator[Batch]:
        size = self._source.image_size
        for shard in shards:
            images = torch.empty((len(shard), size, size, 3), dtype=torch.uint8, pin_memory=self._pinned)
            out = images.numpy()
            pieces = min(self._workers, -(-len(shard) // MIN_IMAGES_PER_THREAD))
            cuts = np.linspace(0, len(shard), pieces + 1).astype(int)
            if self._pool is None or pieces == 1:
                self._produce(epoch, shard, out)
            else:
                jobs = [self._pool.submit(self._produce, epoch, shard[a:b], out[a:b]) for a, b in pairwise(cuts)]
                for job in jobs:
                    job.result()
            yield Batch(images, torch.from_numpy(self._source.labels[shard]), torch.from_numpy(shard))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _produce(self, epoch: int, samples: Indices, out: Pixels) -> None:
        images, rows = self._source.read(samples)
        kernels.augment_batch(images, rows, samples, self._seed, epoch, self._settings, out)


def _batch_producer(config: Config, manifest: Manifest, folder: Path, device: torch.device) -> BatchProducer:
    settings = params.augment_params(config.augment, manifest.image_size, manifest.mean)
    if config.loader == "resident" and device.type == "cuda":
        from runyard.data.loading.resident import DeviceBatches

        return DeviceBatches(*_array_files(config, manifest, folder, "train"), config.seed, settings, device)
    workers = config.workers or default_workers()
    if config.loader == "torch":
        from runyard.data.loading.processes import WorkerBatches

        images, labels, _ = _array_files(config, manifest, folder, "train")
        return WorkerBatches(images, labels, config.seed, settings, workers)
    return _Threads(
        open_source(config, manifest, folder, "train"), config.seed, settings, workers, pinned=device.type == "cuda"
    )


def _array_files(config: Config, manifest: Manifest, folder: Path, split: str) -> tuple[Path, Path, str]:
    files = manifest.splits[split]
    if files.images is None or files.labels is None:
        raise UserError(
            f"loader={config.loader} reads plain arrays, and {folder} was prepared without them",
            "set loader=ffcv, or set data.arrays=true and run: runyard prepare",
        )
    return folder / files.images, folder / files.labels, files.arrays_sha256.get(files.images, "")


def _unaugmented_batch(source: Source, indices: Indices) -> Batch:
    images, rows = source.read(indices)
    return Batch(torch.from_numpy(images[rows]), torch.from_numpy(source.labels[indices]), torch.from_numpy(indices))


@cache
def _array_source(images: Path, labels: Path, identity: str, in_memory: bool) -> Source:
    return ArraySource(images, labels, in_memory=in_memory)


@cache
def _beton_source(path: Path, identity: str, image_size: int) -> Source:
    from runyard.data.loading.ffcv_reader import BetonSource

    return BetonSource(path, image_size)
