"""Writes .beton files and reads them back in a child process, and never hangs.

FFCV's writer loops forever when its worker dies, and its reader when its thread does. So both run in a child process
(``ffcv_writer``) that reports its progress. It is stopped when a worker has died or there is no more progress.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runyard import known_causes, out_of_memory
from runyard.errors import UserError

STALL_S = 300  # without progress for this long the child hangs; importing torch from a slow disk takes longest


@dataclass(frozen=True)
class WriteJob:
    """One file to write. ``images`` is a .npy of uint8 [N, S, S, 3] or a .json list of files, ``labels`` a .npy."""

    beton: str
    images: str
    labels: str
    image_size: int
    write_mode: str
    max_resolution: int | None
    jpeg_quality: int | None
    page_size: int


def write_betons(
    jobs: list[WriteJob], report_progress: Callable[[str, int, int], None], *, stall_s: float = STALL_S
) -> None:
    """Write and check the files in a child process, with calls of ``report_progress(what, done, total)``.

    Raises:
        UserError: the writer failed (disk full, no memory, killed) or made no progress.
    """
    log = Path(jobs[0].beton).with_name("writer.log")
    source = str(Path(__file__).parents[3])
    python_path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "runyard.data.prepare.ffcv_writer", str(os.getpid())]
    oom_monitor = out_of_memory.OomMonitor()
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": python_path},
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps([asdict(job) for job in jobs]).encode())
        process.stdin.close()
        for message in _messages(process, stall_s):
            if "error" in message:
                raise UserError(*message["error"])
            report_progress(message["what"], message["done"], message["total"])
    except BrokenPipeError:
        pass  # it died at once; its exit code below says why
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # Python's resource tracker ignores it and then frees shared memory
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    if process.returncode:
        raise _failure(process.returncode, log, jobs[0].beton, oom_monitor.message())
    log.unlink()


def _messages(process: subprocess.Popen[bytes], stall_s: float) -> Iterator[dict[str, Any]]:
    """Yield the messages of the child process until it closes its end of the pipe."""
    assert process.stdout is not None
    last_change, last_line, remainder = time.monotonic(), b"", b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(timeout=1.0):
                block = os.read(process.stdout.fileno(), 1 << 16)
                if not block:
                    process.wait(timeout=30)
                    return
                *lines, remainder = (remainder + block).split(b"\n")
                for line in lines:
                    if line != last_line:
                        last_change, last_line = time.monotonic(), line
                        yield json.loads(line)
            if time.monotonic() - last_change > stall_s:
                raise UserError(
                    f"the FFCV writer made no progress for {stall_s:g} s and was stopped",
                    "the disk may hang: check it, or set data.root to another",
                )


def _failure(code: int, log: Path, file: str, oom_message: str | None) -> UserError:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    # other lines may follow the error, since its process ends because of it
    error_lines = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    reason = (error_lines or lines or ["no reason given"])[-1][:200]
    raised_in = [line for line in lines if line.startswith("File ")][-1:]  # the innermost frame
    no_semaphore = any("/multiprocessing/" in frame for frame in raised_in)  # these lie in shared memory as well
    no_space = any("No space left" in line or "Disk quota" in line for line in lines)
    if no_space and not no_semaphore:
        return UserError(f"{Path(file).parent.parent}: the disk is full", "make room, or set data.root to another disk")
    if code == -signal.SIGBUS or no_space:
        return UserError("the FFCV writer found too little shared memory: /dev/shm is full", "make room there")
    if code == -signal.SIGKILL:
        cause = f", {oom_message}: free memory" if oom_message else ": find out what killed it"
        return UserError(f"the FFCV writer was {known_causes.exit_text('SIGKILL')}{cause}, then run: runyard prepare")
    return UserError(f"the FFCV writer failed with code {code} ({reason})")
