"""A folder of runs on a login node whose SLURM is a stand-in, and `runyard status` of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.cli.main import main
from tests.support.fabricated import Folder
from tests.support.fake_slurm import FakeSlurm


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    slurm = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", str(slurm.bin) + ":/bin")
    monkeypatch.chdir(tmp_path)
    return Folder(tmp_path / "runs", slurm)


@pytest.fixture
def status(folder: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``status("--all", width=80)``: exit code, stdout and stderr of `runyard status`."""

    def run(*argv: str, width: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(width))
        code = main(["status", "--runs-dir", str(folder.path), *argv])
        return code, *capsys.readouterr()

    return run
