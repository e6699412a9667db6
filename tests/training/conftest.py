"""Small real runs: a few synthetic images, a small network; tests.support.trainings trains them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runyard.config.schema import Config
from runyard.runs.run import Run
from tests.support.settings import SMALL


@pytest.fixture(scope="session")
def make_run(
    tmp_path_factory: pytest.TempPathFactory, data_root: Path, make_config: Callable[..., Config]
) -> Callable[..., Run]:
    """``make_run("epochs=1")``: a new run of the small kind."""
    runs_dir = tmp_path_factory.mktemp("runs")

    def make(*overrides: str) -> Run:
        config = make_config(*SMALL, f"data.root={data_root}", f"runs_dir={runs_dir}", *overrides)
        return Run.create(config, list(overrides))

    return make
