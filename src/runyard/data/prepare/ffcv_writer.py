"""The child process that writes .beton files with FFCV and reads them back; ``beton_writer`` starts and watches it.

There is only one FFCV worker, so pages are written in order and the file has the same bytes each time.
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

import numpy as np

from runyard.data import beton
from runyard.data.datasets.imagefolder import cpus, decode_many
from runyard.data.prepare.beton_writer import WriteJob
from runyard.errors import UserError

_DECODE_CHUNK = 16
ProgressCallback = Callable[[str, int, int], None]


class _Images:
    """The samples in order, read on demand. ``done`` counts the samples read, also for other processes."""

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
                chunk = range(index, min(index + _DECODE_CHUNK, len(self)))
                images = decode_many([Path(self._files[i]) for i in chunk], self._shrink)
                self._decoded = dict(zip(chunk, images, strict=True))
            image = self._decoded[index]
        self.done.value = index + 1
        return image, int(self._labels[index])

    def _shrink(self, image: np.ndarray) -> np.ndarray:
        from ffcv.fields.rgb_image import resizer

        return resizer(image, self._job.max_resolution)


def _import_ffcv() -> None:
    """Import FFCV with a plain dict in place of a numba dict, which FFCV would compile for four seconds."""
    import numba.typed

    typed, numba.typed.Dict = numba.typed.Dict, dict
    try:
        import ffcv.fields.rgb_image  # noqa: F401
    finally:
        numba.typed.Dict = typed


def _write_one(job: WriteJob, report_progress: ProgressCallback) -> None:
    import ffcv.writer
    from ffcv.fields import IntField, RGBImageField

    images, name = _Images(job), Path(job.beton).name
    finished, workers = threading.Event(), list[Process]()

    def process(target: Callable[..., None], args: tuple[object, ...]) -> Process:
        parent = os.getpid()

        def work(*args: object) -> None:
            _die_with_parent(parent)  # a forked process does not inherit this setting
            target(*args)

        workers.append(Process(target=work, args=args))
        return workers[-1]

    # The only way to notice the death of its worker at any time, and to end it with this process.
    ffcv.writer.Process = process
    watcher = threading.Thread(target=_watch, args=(images, name, report_progress, finished, workers), daemon=True)
    watcher.start()
    quality = {"jpeg_quality": job.jpeg_quality} if job.jpeg_quality else {}
    image = RGBImageField(write_mode=job.write_mode, max_resolution=job.max_resolution, **quality)
    fields = {"image": image, "label": IntField()}
    writer = ffcv.writer.DatasetWriter(job.beton, fields, page_size=job.page_size, num_workers=1)
    writer.from_indexed_dataset(images)
    finished.set()
    watcher.join()
    with open(job.beton, "rb") as f:
        os.fsync(f.fileno())


def _watch(
    images: _Images, name: str, report_progress: ProgressCallback, finished: threading.Event, workers: list[Process]
) -> None:
    """Report the progress, and exit when FFCV's worker has died, because FFCV would wait for it forever."""
    while not finished.wait(0.1):
        if any(worker.exitcode for worker in workers):
            os._exit(1)
        report_progress(f"{name}: write", images.done.value, len(images))


def _check_one(job: WriteJob, report_progress: ProgressCallback) -> None:
    """Compare each stored image with its source, as bytes and as decoded by FFCV's own reader."""
    from ffcv.fields.rgb_image import encode_jpeg, resizer

    images, name = _Images(job), Path(job.beton).name
    content = beton.inspect_beton(Path(job.beton))
    if content.samples != len(images):
        raise UserError(f"{job.beton}: read back {content.samples} samples of {len(images)}", "the disk may be faulty")
    stored = np.memmap(job.beton, np.uint8, "r")
    for i in range(len(images)):
        image, label = images[i]
        image = resizer(image, job.max_resolution)
        expected = image.reshape(-1) if job.write_mode == "raw" else encode_jpeg(image, job.jpeg_quality)
        stored_bytes = stored[content.pointers[i] : content.pointers[i] + content.sizes[i]]
        same_size = (content.height[i], content.width[i]) == image.shape[:2]
        if label != content.labels[i] or not same_size or not np.array_equal(stored_bytes, expected):
            raise UserError(f"{job.beton}: sample {i} read back is not what was written", "the disk may be faulty")
        if i % 256 == 0:
            report_progress(f"{name}: compare", i, len(images))
    _check_decoding(job, content, report_progress)


def _check_decoding(job: WriteJob, content: beton.Beton, report_progress: ProgressCallback) -> None:
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
    source_images = (
        np.load(job.images, mmap_mode="r") if job.write_mode == "raw" and job.images.endswith(".npy") else None
    )
    decoded = 0
    for image, label in loader:
        rows = slice(decoded, decoded + len(label))
        pixels_match = source_images is None or np.array_equal(image, source_images[rows])
        if not pixels_match or not np.array_equal(label[:, 0], content.labels[rows]):
            problem = f"{job.beton}: FFCV reads other samples than were written, from sample {decoded} on"
            raise UserError(problem, "the disk may be faulty")
        decoded += len(label)
        report_progress(f"{Path(job.beton).name}: decode", decoded, content.samples)
    if decoded != content.samples:
        problem = f"{job.beton}: FFCV reads {decoded} samples, {content.samples} were written"
        raise UserError(problem, "the disk may be faulty")


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _main() -> None:
    _die_with_parent(int(sys.argv[1]))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries goes to the log

    def report_progress(what: str, done: int, total: int) -> None:
        print(json.dumps({"what": what, "done": done, "total": total}), file=out, flush=True)

    _import_ffcv()
    try:
        for job in json.load(sys.stdin):
            _write_one(WriteJob(**job), report_progress)
            _check_one(WriteJob(**job), report_progress)
    except UserError as error:
        print(json.dumps({"error": [error.problem, error.fix]}), file=out, flush=True)
    out.flush()
    os._exit(0)  # without waiting for FFCV's threads


if __name__ == "__main__":
    _main()
