"""Runs without a training, and a stand-in for W&B's server that the real client talks to over loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runyard.config.schema import Config
from runyard.runs.run import Run
from runyard.tracking.wandb import live
from tests.support.life import KEY
from tests.support.wandb_server import WandbServer


@pytest.fixture
def make_run(tmp_path: Path, make_config: Callable[..., Config]) -> Callable[..., Run]:
    def make(*overrides: str, code: bool = False) -> Run:
        config = make_config(f"runs_dir={tmp_path / 'runs'}", "data=synthetic", "epochs=4", *overrides)
        run = Run.create(config, list(overrides))
        if not code:  # two hundred files to upload
            (run.path / "code").unlink()
        return run

    return make


@pytest.fixture
def nobody_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no netrc, no server, and nothing of W&B's in the home of whoever runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


@pytest.fixture
def server(nobody_home: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """The stand-in, and a key for it in the environment."""
    served = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", served.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(live, "INTERRUPTED_TIMEOUT_S", 60.0)  # this machine may be busy with other tests
    yield served
    served.close()


@pytest.fixture
def nothing_is_kept(nobody_home: None, tmp_path: Path) -> Iterator[None]:
    """At the end a home directory, which has a quota, and the runs hold nothing of what the client keeps."""
    yield
    kept = [path for folder in (".cache/wandb", ".local") for path in (tmp_path / "home" / folder).rglob("*")]
    assert kept == []
    assert [*(tmp_path / "runs").glob("*/wandb/runyard-wandb-*")] == []
