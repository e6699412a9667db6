"""The child process that writes .beton files with FFCV and reads them back; ``writer`` starts and watches it.

One FFCV worker writes pages in order, which makes a file the same byte for byte each time.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import Process, Value
from pathlib import Path
from typing import Any

import numpy as np

from runyard.data import beton
from runyard.data.datasets.imagefolder import cpus, decode_many
from runyard.data.prepare.beton_writer import WriteJob
from runyard.errors import UserError

_DECODE_AT_ONCE = 16
ProgressCallback = Callable[[str, int, int], None]


class _Images:
    """The samples in order, each read when it is asked for; counts what was read so that others see the progress."""

    def __init__(self, job: WriteJob) -> None:
        self._job = job
        self._labels = np.load(job.labels)
        self._array = np.load(job.images, mmap_mode="r") if job.images.endswith(".npy") else None
        self._files = [] if self._array is not None else json.loads(Path(job.images).read_text())
        self._decoded: dict[int, np.ndarray] = {}
        self.done = Value("Q", 0)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if self._array is not None:
            image = np.ascontiguousarray(self._array[index])
        else:
            if index not in self._decoded:
                some = range(index, min(index + _DECODE_AT_ONCE, len(self)))
                images = decode_many([Path(self._files[i]) for i in some], self._shrink)
                self._decoded = dict(zip(some, images, strict=True))
            image = self._decoded[index]
        self.done.value = index + 1
        return image, int(self._labels[index])

    def _shrink(self, image: np.ndarray) -> np.ndarray:
        from ffcv.fields.rgb_image import resizer

        return resizer(image, self._job.max_resolution)


def _import_ffcv() -> None:
    """At its import FFCV has numba compile a dict of two numbers, for four seconds; Python's own serves as well."""
    import numba.typed

    typed, numba.typed.Dict = numba.typed.Dict, dict
    try:
        import ffcv.fields.rgb_image  # noqa: F401
    finally:
        numba.typed.Dict = typed


def _write_one(job: WriteJob, say: ProgressCallback) -> None:
    import ffcv.writer
    from ffcv.fields import IntField, RGBImageField

    images, name = _Images(job), Path(job.beton).name
    finished, workers = threading.Event(), list[Process]()

    def process(target: Callable[..., None], args: tuple[Any, ...]) -> Process:
        parent = os.getpid()

        def work(*args: Any) -> None:
            _die_with_parent(parent)  # a fork loses this setting
            target(*args)

        workers.append(Process(target=work, args=args))
        return workers[-1]

    ffcv.writer.Process = process  # the only way to learn of its worker's death, however early, and to end it with us
    watch = threading.Thread(target=_watch, args=(images, name, say, finished, workers), daemon=True)
    watch.start()
    quality = {"jpeg_quality": job.jpeg_quality} if job.jpeg_quality else {}
    image = RGBImageField(write_mode=job.write_mode, max_resolution=job.max_resolution, **quality)
    fields = {"image": image, "label": IntField()}
    writer = ffcv.writer.DatasetWriter(job.beton, fields, page_size=job.page_size, num_workers=1)
    writer.from_indexed_dataset(images)
    finished.set()
    watch.join()
    with open(job.beton, "rb") as f:
        os.fsync(f.fileno())


def _watch(
    images: _Images, name: str, say: ProgressCallback, finished: threading.Event, workers: list[Process]
) -> None:
    """Tell of the progress, and end this process when FFCV's worker has died: FFCV would wait for it for ever."""
    while not finished.wait(0.1):
        if any(worker.exitcode for worker in workers):
            os._exit(1)
        say(f"{name}: write", images.done.value, len(images))


def _check_one(job: WriteJob, say: ProgressCallback) -> None:
    """Compare each stored image, as bytes and through FFCV's own reader, with its source."""
    from ffcv.fields.rgb_image import encode_jpeg, resizer

    images, name = _Images(job), Path(job.beton).name
    content = beton.inspect_beton(Path(job.beton))
    if content.samples != len(images):
        raise UserError(f"{job.beton}: read back {content.samples} samples of {len(images)}; the disk may be faulty")
    stored = np.memmap(job.beton, np.uint8, "r")
    for i in range(len(images)):
        image, label = images[i]
        image = resizer(image, job.max_resolution)
        wanted = image.reshape(-1) if job.write_mode == "raw" else encode_jpeg(image, job.jpeg_quality)
        stored_bytes = stored[content.pointers[i] : content.pointers[i] + content.sizes[i]]
        same_size = (content.height[i], content.width[i]) == image.shape[:2]
        if label != content.labels[i] or not same_size or not np.array_equal(stored_bytes, wanted):
            raise UserError(f"{job.beton}: sample {i} read back is not what was written; the disk may be faulty")
        if i % 256 == 0:
            say(f"{name}: compare", i, len(images))
    _check_decoding(job, content, say)


def _check_decoding(job: WriteJob, content: beton.Beton, say: ProgressCallback) -> None:
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    side = job.image_size
    fixed = content.square(side)
    decoder = SimpleRGBImageDecoder() if fixed else CenterCropRGBImageDecoder((side, side), 1.0)
    loader = Loader(
        job.beton,
        batch_size=min(256, content.samples),
        num_workers=cpus(),
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        batches_ahead=1,
        pipelines={"image": [decoder], "label": [IntDecoder()]},
    )
    exact = np.load(job.images, mmap_mode="r") if job.write_mode == "raw" and job.images.endswith(".npy") else None
    seen = 0
    for image, label in loader:
        stored_bytes = slice(seen, seen + len(label))
        same = exact is None or np.array_equal(image, exact[stored_bytes])
        if not same or not np.array_equal(label[:, 0], content.labels[stored_bytes]):
            raise UserError(f"{job.beton}: FFCV reads other samples from {seen} on than were written")
        seen += len(label)
        say(f"{Path(job.beton).name}: decode", seen, content.samples)
    if seen != content.samples:
        raise UserError(f"{job.beton}: FFCV reads {seen} samples, {content.samples} were written")


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _main() -> None:
    _die_with_parent(int(sys.argv[1]))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log

    def say(what: str, done: int, total: int) -> None:
        print(json.dumps({"what": what, "done": done, "total": total}), file=out, flush=True)

    _import_ffcv()
    try:
        for job in json.load(sys.stdin):
            _write_one(WriteJob(**job), say)
            _check_one(WriteJob(**job), say)
    except UserError as error:
        print(json.dumps({"error": str(error)}), file=out, flush=True)
    out.flush()
    os._exit(0)  # FFCV's threads are not worth waiting for


if __name__ == "__main__":
    _main()
