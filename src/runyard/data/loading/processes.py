"""loader=torch: PyTorch's DataLoader with worker processes for plain arrays, as the baseline and the fallback."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from runyard.data.arrays import ArraySource
from runyard.data.augment import kernels, params
from runyard.data.loading.batch import Batch
from runyard.data.sampler import Indices

WorkItem = tuple[int, Indices]  # epoch, samples of one micro-batch
BATCH_TIMEOUT_S = 120.0  # a worker that takes longer for a batch is considered hung
# SLURM and terminals send these to every process of a step. Only the training process acts on them.
JOB_SIGNALS = {signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT}


class WorkerBatches:
    """A ``BatchProducer`` with ``workers`` processes, which live as long as it does."""

    on_device = False

    def __init__(self, images: Path, labels: Path, seed: int, settings: params.AugmentParams, workers: int) -> None:
        self._jobs = _WorkQueue()
        # A server process forks the workers, because threads of this process do not survive a fork.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        parent_pipe, self._alive = multiprocessing.Pipe(duplex=False)  # closed by the kernel when this process ends
        self._loader: DataLoader[Batch] = DataLoader(
            _MicroBatches(images, labels, seed, settings),
            sampler=self._jobs,
            batch_size=None,
            num_workers=workers,
            worker_init_fn=functools.partial(_init_worker, parent_pipe),
            persistent_workers=True,
            multiprocessing_context=context,
            timeout=BATCH_TIMEOUT_S,
        )

    def batches(self, epoch: int, shards: Iterable[Indices]) -> Iterator[Batch]:
        self._jobs.current = [(epoch, shard) for shard in shards]
        # Children inherit blocked signals from their first instruction on, before they can ignore them.
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
        try:
            batches = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
        # At exit, torch and multiprocessing would send a SIGTERM, which workers ignore, and wait forever: close before.
        atexit.unregister(self.close)
        atexit.register(self.close)
        try:
            yield from batches
        except RuntimeError as error:
            # Workers pass their batches through shared memory, in files named /torch_…
            if "shared memory" in str(error) or "file </torch_" in str(error):
                message = "no room for loader=torch's batches (loader=ffcv needs none)"
                raise OSError(errno.ENOSPC, message, "/dev/shm") from error
            raise

    def close(self) -> None:
        atexit.unregister(self.close)
        workers = getattr(self._loader, "_iterator", None)
        if workers is not None:
            workers._shutdown_workers()
            self._loader._iterator = None


class _WorkQueue(Sampler[WorkItem]):
    """The work items that the DataLoader gives to its workers, replaced for each epoch."""

    def __init__(self) -> None:
        self.current: list[WorkItem] = []

    def __iter__(self) -> Iterator[WorkItem]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)


class _MicroBatches(Dataset[Batch]):
    """Returns one augmented micro-batch for each work item; used in the workers."""

    def __init__(self, images: Path, labels: Path, seed: int, settings: params.AugmentParams) -> None:
        self._files, self._seed, self._settings = (images, labels), seed, settings
        self._source: ArraySource | None = None

    def __getitem__(self, job: WorkItem) -> Batch:
        if self._source is None:  # opened once per process
            self._source = ArraySource(*self._files, in_memory=False)
        epoch, samples = job
        source, size = self._source, self._source.image_size
        out = np.empty((len(samples), size, size, 3), np.uint8)
        kernels.augment_batch(*source.read(samples), samples, self._seed, epoch, self._settings, out)
        batch = Batch(torch.from_numpy(out), torch.from_numpy(source.labels[samples]), torch.from_numpy(samples))
        # An error here reaches the consumer. In the queue's own thread it would drop the batch silently.
        return Batch(*(column.share_memory_() for column in batch))


def _init_worker(parent_pipe: Connection, _: int) -> None:
    """Set up a worker: it ignores the job's signals, and ends with the training process."""
    threading.Thread(target=_exit_with_parent, args=(parent_pipe,), name="alive", daemon=True).start()
    for number in JOB_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, JOB_SIGNALS)


def _exit_with_parent(parent_pipe: Connection) -> None:
    """Exit when the pipe closes. The parent cannot be watched: it is the fork server, which outlives its creator."""
    with contextlib.suppress(EOFError, OSError):
        parent_pipe.recv_bytes()
    os.kill(os.getpid(), signal.SIGKILL)
