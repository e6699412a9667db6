"""No thread and no process that reads dies unheard, outlives its training, or keeps it waiting."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runyard.config.schema import Config
from runyard.data.loading import loaders
from runyard.data.loading.prefetch import Prefetch
from tests.support.loading import (
    CPU,
    FFCVS_OWN,
    joined,
    same,
    steps,
)
from tests.support.settings import PATIENCE_S


def prefetch_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "runyard-prefetch"]


def test_an_error_in_the_reader_reaches_the_consumer_with_its_cause(
    config: Config, prepared: Any, monkeypatch: Any
) -> None:
    def poisoned(*_: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(loaders.kernels, "augment_batch", poisoned)
    for workers in (1, 2):
        with pytest.raises(OSError, match="the disk is gone"):
            steps(replace(config, loader="ffcv", workers=workers), prepared)
    assert not prefetch_threads()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning", FFCVS_OWN)
def test_ffcvs_own_iterator_waits_for_ever_on_that_error(prepared: Any, monkeypatch: Any) -> None:
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.loader.epoch_iterator import EpochIterator

    def poisoned(*_: Any) -> None:
        raise OSError("the disk is gone")

    threads = torch.get_num_threads()
    monkeypatch.setattr(EpochIterator, "run_pipeline", poisoned)
    loader = Loader(
        str(prepared[1] / "test.beton"),
        8,
        num_workers=1,
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]},
    )
    iterator = iter(loader)
    torch.set_num_threads(threads)  # FFCV's loader changes it for the whole process
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, iterator)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=2)
        iterator.output_queue.put(None)  # end its wait, which nothing else would
        with pytest.raises(StopIteration):
            waiting.result(timeout=PATIENCE_S)
    del loader, iterator
    gc.collect()


def test_a_thread_that_ends_without_a_word_is_noticed(monkeypatch: Any) -> None:
    monkeypatch.setattr(Prefetch, "_run", lambda self: None)
    with pytest.raises(RuntimeError, match="ended without an error"):
        next(Prefetch(iter([1])))


def test_leaving_an_epoch_early_ends_its_thread_and_a_new_epoch_begins_clean(config: Config, prepared: Any) -> None:
    config = replace(config, loader="ffcv", batch_size=20)
    loader = loaders.train_loader(config, *prepared, rank=0, world_size=1, device=CPU)
    for _ in loader.epoch(0):
        break
    assert not prefetch_threads()
    abandoned = loader.epoch(0)
    next(abandoned)
    assert len(prefetch_threads()) == 1
    assert same(joined(list(loader.epoch(1))), joined(steps(config, prepared, epoch=1)))
    assert not prefetch_threads()
    loader.close()


def test_prefetch_runs_ahead_only_as_far_as_told() -> None:
    made = []

    def items() -> Iterator[int]:
        for i in range(100):
            made.append(i)
            yield i

    with Prefetch(items(), ahead=2) as ahead:
        assert next(ahead) == 0
        time.sleep(0.5)
        assert len(made) <= 5
    assert not prefetch_threads()


def test_the_wait_for_batches_is_counted(config: Config, prepared: Any, monkeypatch: Any) -> None:
    real = loaders.kernels.augment_batch

    def slow(*args: Any) -> None:
        time.sleep(0.2)
        real(*args)

    monkeypatch.setattr(loaders.kernels, "augment_batch", slow)
    loader = loaders.train_loader(config, *prepared, rank=0, world_size=1, device=CPU)
    assert loader.wait_s == 0
    assert len(list(loader.epoch(0))) == 3
    assert loader.wait_s > 0.5
    loader.close()


def test_worker_processes_ignore_the_jobs_signals_live_through_epochs_and_end_with_the_loader(
    config: Config, prepared: Any
) -> None:
    config = replace(config, loader="torch", workers=2, batch_size=20)
    loader: Any = loaders.train_loader(config, *prepared, rank=0, world_size=1, device=CPU)
    running = loader.epoch(0)
    next(running)
    workers = list(loader._producer._loader._iterator._workers)
    for worker in workers:
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            os.kill(worker.pid, number)
    running.close()  # and an early end, while batches are still on their way
    assert same(joined(list(loader.epoch(1))), joined(steps(replace(config, loader="resident"), prepared, epoch=1)))
    assert [w.pid for w in loader._producer._loader._iterator._workers] == [w.pid for w in workers]
    loader.close()
    assert not any(worker.is_alive() for worker in workers)


UNCLOSED = """
import pickle, sys
import torch
from runyard.data.loading import loaders
config, prepared = pickle.load(open(sys.argv[1], "rb"))
running = loaders.train_loader(config, *prepared, rank=0, world_size=1, device=torch.device("cpu")).epoch(0)
print(len(next(running)))
"""


@pytest.mark.slow
def test_a_program_that_ends_without_closing_its_worker_processes_does_end(
    config: Config, prepared: Any, tmp_path: Path
) -> None:
    (tmp_path / "given").write_bytes(pickle.dumps((replace(config, loader="torch", batch_size=20), prepared)))
    done = subprocess.run(
        [sys.executable, "-c", UNCLOSED, str(tmp_path / "given")], capture_output=True, text=True, timeout=PATIENCE_S
    )  # it would wait for ever
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


KILLED = UNCLOSED.replace(
    "print(len(next(running)))",
    """
import os, signal
next(running)
loader = running.gi_frame.f_locals["self"]
print(*(worker.pid for worker in loader._producer._loader._iterator._workers), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""",
)


@pytest.mark.slow
def test_no_worker_outlives_a_training_process_that_was_killed(config: Config, prepared: Any, tmp_path: Path) -> None:
    config = replace(config, loader="torch", batch_size=20, workers=2)
    (tmp_path / "given").write_bytes(pickle.dumps((config, prepared)))
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "given")], stdout=subprocess.PIPE, text=True)
    workers = done.stdout.split()
    assert (done.returncode, len(workers)) == (-signal.SIGKILL, 2)
    deadline = time.monotonic() + 600
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "they live on"
        time.sleep(0.1)


FULL = (
    """
import resource, signal
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a full /dev/shm answers: no batch fits
"""
    + UNCLOSED
)


@pytest.mark.slow
def test_where_batches_do_not_fit_into_shared_memory_that_is_said_at_once(
    config: Config, prepared: Any, tmp_path: Path
) -> None:
    (tmp_path / "given").write_bytes(pickle.dumps((replace(config, loader="torch", batch_size=20), prepared)))
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "given")], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no room for loader=torch's batches (loader=ffcv needs none): '/dev/shm'" in done.stderr
