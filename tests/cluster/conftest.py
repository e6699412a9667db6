"""A login node whose SLURM is a stand-in, and folders of small runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Runs
from tests.support.fake_slurm import FakeSlurm
from tests.support.settings import SMALL


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A login node: SLURM's commands are on PATH, and they are ours."""
    fake = FakeSlurm(tmp_path / "fake slurm")
    monkeypatch.setenv("PATH", fake.path)
    return fake


@pytest.fixture
def small(data_root: Path, tmp_path: Path) -> list[str]:
    """Overrides that make a small run which would work."""
    return [*SMALL, f"data.root={data_root}", f"runs_dir={tmp_path / 'runs'}"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), data_root)
