"""Made runs to report on, each with its own test images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from runyard.config.schema import Config
from tests.support.fake_runs import CLASSES, FakeRun

MakeFakeRun = Callable[..., FakeRun]


@pytest.fixture(scope="session")
def make_fake_run(make_config: Callable[..., Config]) -> MakeFakeRun:
    """``make_fake_run(folder, epochs=9, **settings)``: a run that began a day ago; its data lies beside it."""
    config = make_config("experiment=paper", "name=fake", "runs_dir=runs")

    def make(folder: Path, epochs: int = 50, classes: Iterable[str] = CLASSES, **settings: Any) -> FakeRun:
        changed = {"epochs": epochs, "data.root": str(folder / "data"), "data.sources": ["disk"]}
        return FakeRun(
            folder / "20251122-164500-fake-ab12", config, settings=changed | settings, classes=classes,
            began=time.time() - 86_400,
        )  # fmt: skip

    return make


@pytest.fixture
def fake_run(tmp_path: Path, make_fake_run: MakeFakeRun) -> MakeFakeRun:
    """``make_fake_run`` in a folder of its own."""
    made: list[FakeRun] = []

    def make(**how: Any) -> FakeRun:
        made.append(make_fake_run(tmp_path / f"run{len(made)}", **how))
        return made[-1]

    return make
