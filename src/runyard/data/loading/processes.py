"""loader=torch: PyTorch's DataLoader with worker processes over plain arrays, the baseline and the fallback."""

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
# What SLURM and a terminal send to every process of a step. Only the training process acts on them.
BATCH_TIMEOUT_S = 120.0  # after which a worker hangs
JOB_SIGNALS = {signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT}


class WorkerBatches:
    """A ``Maker`` whose batches come from ``workers`` processes that live as long as it does."""

    on_device = False

    def __init__(self, images: Path, labels: Path, seed: int, settings: params.AugmentParams, workers: int) -> None:
        self._jobs = _WorkQueue()
        # a server process forks the workers: this process has threads, which do not survive a fork
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        parent_pipe, self._alive = multiprocessing.Pipe(duplex=False)  # its end here closes when this process is gone
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

    def batches(self, epoch: int, shares: Iterable[Indices]) -> Iterator[Batch]:
        self._jobs.current = [(epoch, share) for share in shares]
        # blocked signals stay blocked in children from their first instruction on, before they can ignore them
        before = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
        try:
            batches = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # at exit, before torch and multiprocessing end the workers by a SIGTERM, which these ignore, and wait for ever
        atexit.unregister(self.close)
        atexit.register(self.close)
        try:
            yield from batches
        except RuntimeError as error:
            # Workers hand over their batches in shared memory: files named /torch_… of it.
            if "shared memory" in str(error) or "file </torch_" in str(error):
                words = "no room for loader=torch's batches (loader=ffcv needs none)"
                raise OSError(errno.ENOSPC, words, "/dev/shm") from error
            raise

    def close(self) -> None:
        atexit.unregister(self.close)
        workers = getattr(self._loader, "_iterator", None)
        if workers is not None:
            workers._shutdown_workers()
            self._loader._iterator = None


class _WorkQueue(Sampler[WorkItem]):
    """What the DataLoader hands to its workers: set anew for each epoch."""

    def __init__(self) -> None:
        self.current: list[WorkItem] = []

    def __iter__(self) -> Iterator[WorkItem]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)


class _MicroBatches(Dataset[Batch]):
    """In a worker: one job to one augmented micro-batch."""

    def __init__(self, images: Path, labels: Path, seed: int, settings: params.AugmentParams) -> None:
        self._files, self._seed, self._settings = (images, labels), seed, settings
        self._source: ArraySource | None = None

    def __getitem__(self, job: WorkItem) -> Batch:
        if self._source is None:  # mapped once per process, the pages shared by all of them
            self._source = ArraySource(*self._files, in_memory=False)
        epoch, samples = job
        source, size = self._source, self._source.image_size
        out = np.empty((len(samples), size, size, 3), np.uint8)
        kernels.augment_batch(*source.read(samples), samples, self._seed, epoch, self._settings, out)
        batch = Batch(torch.from_numpy(out), torch.from_numpy(source.labels[samples]), torch.from_numpy(samples))
        # Here an error is handed over. The queue's thread, which else would do it, drops the batch without a word.
        return Batch(*(column.share_memory_() for column in batch))


def _init_worker(parent_pipe: Connection, _: int) -> None:
    """A worker's first act: to leave the job's signals to the training process, and to end with it."""
    threading.Thread(target=_exit_with_parent, args=(parent_pipe,), name="alive", daemon=True).start()
    for number in JOB_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, JOB_SIGNALS)


def _exit_with_parent(parent_pipe: Connection) -> None:
    """Not by the parent: the server that forked this process outlives who started it."""
    with contextlib.suppress(EOFError, OSError):
        parent_pipe.recv_bytes()
    os.kill(os.getpid(), signal.SIGKILL)
