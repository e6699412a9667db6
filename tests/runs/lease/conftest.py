"""A run, and real processes that want to write it, each of the SLURM job that its environment says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runyard.config.schema import Config
from runyard.runs.run import Run


@pytest.fixture
def run(tmp_path: Path, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return Run.create(make_config("experiment=starter", f"runs_dir={tmp_path / 'runs'}"), [])


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``job(12, restarts=1)``: from now on this process is of that SLURM job."""

    def become(number: int, restarts: int = 0) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", str(number))
        monkeypatch.setenv("SLURM_CLUSTER_NAME", "lab")
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))

    return become


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``start(code, run.path, SLURM_JOB_ID="12")``: a process, which has said ``held``. Ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(code: str, *args: Any, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            env=os.environ | {"SLURM_CLUSTER_NAME": "lab"} | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n", process.communicate()
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()
