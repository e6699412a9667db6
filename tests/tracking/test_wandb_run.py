"""The W&B record is a copy: complete where W&B works, and no training's business where it does not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from runyard.config import Config
from runyard.run import Run
from runyard.tracking import journal, wandb_run
from runyard.tracking.recorder import Recorder
from runyard.tracking.wandb_run import can_go_online

EPOCH = {
    "epoch": 1, "step": 8, "train_loss": 1.5, "train_top1": 0.4, "test_loss": 1.4, "test_top1": 0.5, "val_loss": None,
    "val_top1": None, "lr": 0.1, "images_per_s": 100.0, "data_wait_pct": 1.0, "train_s": 1.0, "eval_s": 0.1,
    "peak_memory_mb": 300.0, "clock_s": 1.1,
}  # fmt: skip
FINAL = {
    "split": "test", "top1": 0.5, "loss": 1.4, "top1_best": 0.5, "best_epoch": 1, "confusion": [[3, 1], [2, 4]],
    "classes": ["cat", "dog"], "clock_s": 1.1, "parameters": 10,
}  # fmt: skip
KEY = "5ec7e75ec7e75ec7e75ec7e75ec7e75ec7e75ec7"


@pytest.fixture
def make_run(tmp_path: Path, make_config: Callable[..., Config]) -> Callable[..., Run]:
    def make(*overrides: str) -> Run:
        return Run.create(make_config(f"runs_dir={tmp_path / 'runs'}", *overrides), [])

    return make


@pytest.fixture(autouse=True)
def _nobody_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no netrc, no server."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


class Record:
    """Stands in for W&B's run: notes what it is told, and fails where it is told to."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.logged, self.metrics, self.summary = failing, [], {}, {}  # type: ignore[var-annotated]
        self.settings: dict[str, Any] = {}
        self.finished: int | None = None

    def init(self, **settings: Any) -> Record:
        if self.failing == "init":
            raise wandb.errors.CommError("no word\nfrom the server")
        self.settings = settings
        return self

    def define_metric(self, name: str, **settings: Any) -> None:
        self.metrics[name] = settings

    def log(self, point: dict[str, Any]) -> None:  # takes no step
        if self.failing == "log":
            raise RuntimeError("the mailbox is closed")
        self.logged.append(point)

    def finish(self, exit_code: int) -> None:
        if self.failing == "finish":
            raise BrokenPipeError(32, "Broken pipe")
        self.finished = exit_code


def recorded(run: Run, monkeypatch: pytest.MonkeyPatch, failing: str = "", failed: bool = False) -> Record:
    """A short life of ``run``, told to a stand-in."""
    record = Record(failing)
    monkeypatch.setattr(wandb, "init", record.init)
    recorder = Recorder(run, active=True)
    recorder.open_wandb({"world_size": 2})
    recorder.event("epoch", **EPOCH)
    recorder.event("epoch", **EPOCH | {"epoch": 2, "step": 16})
    recorder.event("final", **FINAL)
    recorder.event("stop", reason="finished", message="")
    recorder.close(failed)
    return record


@pytest.mark.slow
def test_offline_needs_no_account_no_network_and_writes_one_record(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = make_run("tracking=offline", "tracking.tags=[tagged]")
    recorder = Recorder(run, active=True)
    recorder.open_wandb({"device_name": "abacus"})
    recorder.event("epoch", **EPOCH)
    recorder.event("final", **FINAL)
    recorder.close()
    wandb.teardown()  # as at the end of a process: waits until all of it is on disk
    (record,) = (run.path / "wandb").glob("offline-run-*/*.wandb")
    assert record.name == f"run-{run.id}.wandb"
    for word in (b"train/loss", b"abacus", b"tagged", b"confusion_matrix", b"top1_best"):
        assert word in record.read_bytes()
    assert [row["event"] for row in journal.read(run.journal_path)[0]] == ["epoch", "final"], "no warning"
    assert not [p for p in run.path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


def test_curves_go_by_epoch_under_sections_and_never_by_wandbs_own_step(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = recorded(make_run(), monkeypatch)
    first, second, final = record.logged
    assert (first["epoch"], first["step"], second["epoch"], second["step"]) == (1, 8, 2, 16)
    assert (first["train/loss"], first["test/top1"], first["train/lr"]) == (1.5, 0.5, 0.1)
    assert "val/loss" not in first, "what was not measured is no point"
    assert set(final) == {"confusion_matrix", "epoch"}
    assert record.metrics["*"] == {"step_metric": "epoch"}
    assert record.metrics["test/top1"] == {"step_metric": "epoch", "summary": "max,last"}
    assert record.summary["top1_best"] == 0.5
    assert record.finished == 0


def test_the_record_carries_the_runs_id_group_tags_and_nested_settings(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("experiment=starter", "tracking.tags=[a]", "tracking.mode=offline")
    settings = recorded(run, monkeypatch).settings
    named = {key: settings[key] for key in ("id", "group", "job_type", "tags")}
    assert named == {"id": run.id, "group": "starter", "job_type": "train", "tags": ["a"]}
    assert (settings["mode"], settings["resume"]) == ("offline", None)
    assert settings["config"]["optim"]["lr"] == run.config.optim.lr
    assert settings["config"]["machine"] == {"world_size": 2}
    assert not [key for key in keys(settings["config"]) if "." in key]
    assert 0 < settings["settings"].finish_timeout <= 60
    online = recorded(make_run("tracking.mode=online"), monkeypatch).settings
    assert (online["mode"], online["resume"]) == ("online", "allow")


def keys(values: dict[str, Any]) -> list[str]:
    return [k for key, value in values.items() for k in (key, *(keys(value) if isinstance(value, dict) else []))]


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ("init", "W&B did not start (no word)"),
        ("log", "W&B lost a point (the mailbox is closed)"),
        ("finish", "W&B did not finish"),
    ],
)
def test_a_wandb_that_fails_is_one_warning_and_the_journal_is_whole(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, failing: str, said: str
) -> None:
    run = make_run()
    record = recorded(run, monkeypatch, failing)
    rows, broken = journal.read(run.journal_path)
    (warning,) = [row for row in rows if row["event"] == "warning"]
    assert said in warning["message"]
    assert "\n" not in warning["message"]
    assert [row["event"] for row in rows if row["event"] != "warning"] == ["epoch", "epoch", "final", "stop"]
    assert broken == 0
    assert record.finished == {"init": None, "log": 0, "finish": None}[failing], "what was opened is closed"


def test_a_machine_without_wandb_is_a_warning(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    run = make_run()
    recorder = Recorder(run, active=True)
    recorder.open_wandb({})
    recorder.event("epoch", **EPOCH)
    assert [row["event"] for row in journal.read(run.journal_path)[0]] == ["warning", "epoch"]


def test_a_failed_training_closes_its_record_as_failed(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recorded(make_run(), monkeypatch, failed=True).finished == 1


@pytest.mark.parametrize(("active", "mode"), [(False, "offline"), (True, "none")])
def test_only_rank_0_opens_a_record_and_only_where_it_is_wanted(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, active: bool, mode: str
) -> None:
    monkeypatch.setattr(wandb, "init", lambda **settings: pytest.fail("opened"))
    Recorder(make_run(f"tracking.mode={mode}"), active=active).open_wandb({})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Something that listens where WANDB_BASE_URL says."""
    listening = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
    return SimpleNamespace(socket=listening)


def test_auto_goes_online_with_a_key_and_a_server(
    server: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not can_go_online(), "no key"
    (tmp_path / "netrc").write_text("machine elsewhere login user password secret\n")
    assert not can_go_online(), "a key of another host"
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login user password {KEY}\n")
    assert can_go_online()
    (tmp_path / "netrc").write_text("machine machine machine")
    assert not can_go_online(), "a netrc that cannot be read"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert can_go_online()
    server.socket.close()
    assert not can_go_online(), "nobody listens"


def test_auto_does_not_wait_for_a_name_that_nobody_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, over = threading.Event(), threading.Event()

    def silent(*args: Any, **kwargs: Any) -> Any:
        asked.set()
        over.wait(60)
        raise socket.gaierror

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_run, "REACH_TIMEOUT_S", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", silent)
    assert not can_go_online()
    assert asked.is_set()
    assert not over.is_set(), "it answered while the name was still being looked for"
    over.set()
