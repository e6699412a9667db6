"""Has .beton files written and read back by a child process, and never waits for ever.

FFCV's writer loops without end when its worker dies, and its reader when its thread does. So both run in a child
(``ffcv_writer``) that tells how far it is, and that is stopped when a worker has died or nothing moves any more.
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

STALL_S = 300  # no sign of life for so long: a hang. Importing torch from a cold network disk is the longest silence


@dataclass(frozen=True)
class WriteJob:
    """One file to write: ``images`` is a .npy of uint8 [N, S, S, 3] or a .json list of files, ``labels`` a .npy."""

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
    """Write and check the files in a child process; ``tell(what, done, total)`` hears of the progress.

    Raises:
        UserError: the writer failed (disk full, memory, killed) or stood still.
    """
    log = Path(jobs[0].beton).with_name("writer.log")
    source = str(Path(__file__).parents[3])
    python_path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "runyard.data.prepare.ffcv_writer", str(os.getpid())]
    watch = out_of_memory.OomMonitor()
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
                raise UserError(message["error"])
            report_progress(message["what"], message["done"], message["total"])
    except BrokenPipeError:
        pass  # it died at once; its exit code below tells
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # Python's resource tracker ignores it, and then frees shared memory
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    if process.returncode:
        raise _failure(process.returncode, log, jobs[0].beton, watch.message())
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
                raise UserError(
                    f"the FFCV writer stood still for {stall_s:g} s and was stopped; the disk may hang: "
                    "look at it, or set data.root to another"
                )


def _failure(code: int, log: Path, file: str, struck: str | None) -> UserError:
    words = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    raised = [line for line in words if re.match(r"[\w.]+(Error|Exception)\b", line)]  # its end makes others talk too
    last = (raised or words or ["no reason given"])[-1][:200]
    if any("No space left" in line or "Disk quota" in line for line in words):
        return UserError(f"{Path(file).parent.parent}: the disk is full; make room, or set data.root to another disk")
    if code == -signal.SIGBUS:
        return UserError("the FFCV writer found too little shared memory: /dev/shm is full; make room there")
    if code == -signal.SIGKILL:
        why = f", {struck}: free memory" if struck else ": look who did it"
        return UserError(f"the FFCV writer was {known_causes.exit_text('SIGKILL')}{why}, then run: runyard prepare")
    return UserError(f"the FFCV writer failed with code {code} ({last})")
