"""Fixtures for what reads many runs: made ones, and `runyard compare` over them. A conftest imports them by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.cli.main import main
from runyard.config.schema import Config
from runyard.runs.results.history import RunHistory
from runyard.runs.results.reading import load_history
from tests.support.fake_runs import Compare, Make, fabricate


@pytest.fixture(scope="session")
def recipe(make_config: Callable[..., Config]) -> Config:
    return make_config("experiment=paper", "epochs=10")


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def make(runs_dir: Path, recipe: Config) -> Make:
    """``make(top1, seed=1, lr=1e-3, ...)`` fabricates the next run and gives its History."""
    made: list[Path] = []

    def one(
        top1: float = 0.92,
        *,
        seed: int = 0,
        lr: float = 1e-3,
        name: str = "paper",
        settings: dict[str, Any] | None = None,
        **how: Any,
    ) -> RunHistory:
        settings = {"seed": seed, "optim.lr": lr, "name": name} | (settings or {})
        run_id = f"20260901-{len(made):06d}-{name}-ab12"
        how = {"began": 1_790_000_000.0 + 1000 * len(made)} | how
        made.append(fabricate(runs_dir, recipe, run_id, settings=settings, top1=top1, **how))
        return load_history(made[-1])

    return one


@pytest.fixture
def compare(runs_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Compare:
    """``compare("--all", "--json")``: exit code, stdout, stderr of `runyard compare`, 120 columns wide."""

    def run(*argv: str, verb: str = "compare", width: int = 120) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(width))
        capsys.readouterr()
        code = main([verb, *argv, "--runs-dir", str(runs_dir)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def document(compare: Compare, *argv: str) -> dict[str, Any]:
    code, out, _ = compare(*argv, "--json")
    assert code == 0
    return json.loads(out)  # type: ignore[no-any-return]
