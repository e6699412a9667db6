"""FFCV's writer never makes anybody wait for ever, and its failures say what to do."""

import signal
from pathlib import Path

import numpy as np
import pytest

from runyard.data.datasets import synthetic
from runyard.data.prepare import beton_writer
from runyard.errors import UserError


@pytest.fixture
def job(tmp_path: Path) -> beton_writer.WriteJob:
    images, labels = synthetic.make_split("train", 8, 2, 16)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    beton, images, labels = (str(tmp_path / name) for name in ("a.beton", "images.npy", "labels.npy"))
    return beton_writer.WriteJob(beton, images, labels, 16, "raw", None, None, 2 << 20)


def test_a_writer_that_stands_still_is_stopped(job: beton_writer.WriteJob) -> None:
    with pytest.raises(UserError, match=r"made no progress for 0\.2 s"):
        beton_writer.write_betons([job], lambda what, done, total: None, stall_s=0.2)


@pytest.mark.slow
def test_a_dead_worker_of_ffcv_ends_the_write_with_its_reason(job: beton_writer.WriteJob, tmp_path: Path) -> None:
    (tmp_path / "files.json").write_text('["/nowhere/a.jpg"]')
    np.save(tmp_path / "labels.npy", np.zeros(1, np.int64))
    broken = beton_writer.WriteJob(job.beton, str(tmp_path / "files.json"), *list(vars(job).values())[2:])
    with pytest.raises(UserError, match=r"the FFCV writer failed with code 1 \(.*it is gone"):
        beton_writer.write_betons([broken], lambda what, done, total: None)


@pytest.mark.parametrize(
    ("code", "words", "struck", "wanted"),
    [
        (1, "OSError: [Errno 28] No space left on device", None, "the disk is full"),
        (1, 'File "/lib/multiprocessing/synchronize.py", line 57\nOSError: [Errno 28] No space left', None, "/dev/shm"),
        (-signal.SIGBUS, "", None, "/dev/shm"),
        (-signal.SIGKILL, "", None, r"killed by SIGKILL \(signal 9\): find out what killed it"),
        (-signal.SIGKILL, "", "the kernel killed it for want of memory", "for want of memory: free memory"),
        (3, "ValueError: odd\nwarnings.warn('a leak')", None, r"code 3 \(ValueError: odd\)"),
    ],
)
def test_a_failed_writer_says_what_to_do(
    tmp_path: Path, code: int, words: str, struck: str | None, wanted: str
) -> None:
    (tmp_path / "log").write_text(f"Traceback\n{words}\n")
    with pytest.raises(UserError, match=wanted):
        raise beton_writer._failure(code, tmp_path / "log", "data/.x.making/train.beton", struck)
