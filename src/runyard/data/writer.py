"""Writes .beton files with FFCV, reads them back, and never waits for ever.

FFCV's writer loops without end when its worker dies, and its reader when its thread does. So both run in a child
process that tells how far it is, and that is stopped when a worker has died or nothing moves any more.
One worker writes pages in order, which makes the file the same byte for byte each time.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing import Value, active_children
from pathlib import Path
from typing import Any

import numpy as np

from runyard.data import beton
from runyard.data.imagefolder import decode_many
from runyard.errors import UserError

STALL_S = 300  # no sign of life for so long: a hang. Importing torch from a cold network disk is the longest silence
_DECODE_AT_ONCE = 16


@dataclass(frozen=True)
class Job:
    """One file to write: ``images`` is a .npy of uint8 [N, S, S, 3], or a .json list of image files; ``labels`` a .npy."""

    beton: str
    images: str
    labels: str
    image_size: int
    write_mode: str
    max_resolution: int | None
    jpeg_quality: int | None
    page_size: int


def write(jobs: list[Job], tell: Callable[[str, int, int], None], *, stall_s: float = STALL_S) -> None:
    """Write and check the files in a child process; ``tell(what, done, total)`` hears of the progress.

    Raises:
        UserError: the writer failed (disk full, memory, killed) or stood still.
    """
    log = Path(jobs[0].beton).with_name("writer.log")
    source = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))}
    with open(log, "wb") as errors:
        process = subprocess.Popen([sys.executable, "-m", __name__, str(os.getpid())], env=environment, stderr=errors,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps([asdict(job) for job in jobs]).encode())
        process.stdin.close()
        for message in _messages(process, stall_s):
            if "error" in message:
                raise UserError(message["error"])
            tell(message["what"], message["done"], message["total"])
    except BrokenPipeError:
        pass  # it died at once; its exit code below tells
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    if process.returncode:
        raise _failure(process.returncode, log, jobs[0].beton)
    log.unlink()


def _messages(process: subprocess.Popen[bytes], stall_s: float) -> Iterator[dict[str, Any]]:
    """What the child says, line by line, until it closes its end."""
    assert process.stdout is not None
    since, last, rest = time.monotonic(), b"", b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(timeout=1.0):
                block = os.read(process.stdout.fileno(), 1 << 16)
                if not block:
                    process.wait(timeout=30)
                    return
                *lines, rest = (rest + block).split(b"\n")
                for line in lines:
                    if line != last:
                        since, last = time.monotonic(), line
                        yield json.loads(line)
            if time.monotonic() - since > stall_s:
                raise UserError(f"the FFCV writer stood still for {stall_s:g} s and was stopped; the disk may hang: "
                                "look at it, or set data.root to another")


def _failure(code: int, log: Path, file: str) -> UserError:
    words = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = words[-1][:200] if words else "no reason given"
    if any("No space left" in line or "Disk quota" in line for line in words):
        return UserError(f"{Path(file).parent.parent}: the disk is full; make room, or set data.root to another disk")
    if code == -signal.SIGBUS:
        return UserError("the FFCV writer found too little shared memory: /dev/shm is full; make room there")
    if code == -signal.SIGKILL:
        return UserError("the FFCV writer was killed, perhaps for want of memory; free some and run again: runyard prepare")
    return UserError(f"the FFCV writer failed with code {code} ({last})")


# From here on: in the child.


class _Images:
    """The samples in order, each read when it is asked for; counts what was read so that others see the progress."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._labels = np.load(job.labels)
        self._array = np.load(job.images, mmap_mode="r") if job.images.endswith(".npy") else None
        self._files = [] if self._array is not None else json.loads(Path(job.images).read_text())
        self._decoded: dict[int, np.ndarray] = {}
        self._owner = os.getpid()
        self.done = Value("Q", 0)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if os.getpid() != self._owner:  # FFCV's worker, at its first sample: a fork loses this setting
            self._owner = os.getpid()
            _die_with_parent(os.getppid())
        if self._array is not None:
            image = np.ascontiguousarray(self._array[index])
        else:
            if index not in self._decoded:
                some = range(index, min(index + _DECODE_AT_ONCE, len(self)))
                self._decoded = dict(zip(some, decode_many([Path(self._files[i]) for i in some], self._shrink), strict=True))
            image = self._decoded[index]
        self.done.value = index + 1
        return image, int(self._labels[index])

    def _shrink(self, image: np.ndarray) -> np.ndarray:
        from ffcv.fields.rgb_image import resizer

        return resizer(image, self._job.max_resolution)


def _write_one(job: Job, say: Callable[[str, int, int], None]) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    images, name = _Images(job), Path(job.beton).name
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(images, name, say, over), daemon=True)
    watch.start()
    field = RGBImageField(write_mode=job.write_mode, max_resolution=job.max_resolution, jpeg_quality=job.jpeg_quality or 90)
    writer = DatasetWriter(job.beton, {"image": field, "label": IntField()}, page_size=job.page_size, num_workers=1)
    writer.from_indexed_dataset(images)
    over.set()
    watch.join()
    with open(job.beton, "rb") as f:
        os.fsync(f.fileno())


def _watch(images: _Images, name: str, say: Callable[[str, int, int], None], over: threading.Event) -> None:
    """Tell of the progress, and end this process when FFCV's worker has died: FFCV would wait for it for ever."""
    workers = set()
    while not over.wait(0.1):
        workers |= set(active_children())
        if any(worker.exitcode for worker in workers):
            os._exit(1)
        say(f"{name}: write", images.done.value, len(images))


def _check_one(job: Job, say: Callable[[str, int, int], None]) -> None:
    """Compare each stored image, as bytes and through FFCV's own reader, with its source."""
    from ffcv.fields.rgb_image import encode_jpeg, resizer

    images, name = _Images(job), Path(job.beton).name
    content = beton.inspect(Path(job.beton))
    if content.samples != len(images):
        raise UserError(f"{job.beton}: read back {content.samples} samples, wrote {len(images)}; the disk may be faulty")
    stored = np.memmap(job.beton, np.uint8, "r")
    for i in range(len(images)):
        image, label = images[i]
        image = resizer(image, job.max_resolution)
        wanted = image.reshape(-1) if job.write_mode == "raw" else encode_jpeg(image, job.jpeg_quality)
        here = stored[content.pointers[i]:content.pointers[i] + content.sizes[i]]
        if label != content.labels[i] or (content.height[i], content.width[i]) != image.shape[:2] or not np.array_equal(here, wanted):
            raise UserError(f"{job.beton}: sample {i} read back is not what was written; the disk may be faulty")
        if i % 256 == 0:
            say(f"{name}: compare", i, len(images))
    _check_decoding(job, content, say)


def _check_decoding(job: Job, content: beton.Beton, say: Callable[[str, int, int], None]) -> None:
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    side = job.image_size
    fixed = bool((content.width == side).all() and (content.height == side).all())
    decoder = SimpleRGBImageDecoder() if fixed else CenterCropRGBImageDecoder((side, side), 1.0)
    loader = Loader(job.beton, batch_size=min(256, content.samples), num_workers=len(os.sched_getaffinity(0)), os_cache=True,
                    order=OrderOption.SEQUENTIAL, drop_last=False, batches_ahead=1,
                    pipelines={"image": [decoder], "label": [IntDecoder()]})
    exact = np.load(job.images, mmap_mode="r") if fixed and job.write_mode == "raw" and job.images.endswith(".npy") else None
    seen = 0
    for image, label in loader:
        here = slice(seen, seen + len(label))
        if not np.array_equal(label[:, 0], content.labels[here]) or (exact is not None and not np.array_equal(image, exact[here])):
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

    try:
        for job in json.load(sys.stdin):
            _write_one(Job(**job), say)
            _check_one(Job(**job), say)
    except UserError as error:
        print(json.dumps({"error": str(error)}), file=out, flush=True)
    out.flush()
    os._exit(0)  # FFCV's threads are not worth waiting for


if __name__ == "__main__":
    _main()
