"""Runs at W&B are compared as their directories are: the same table and page, fetched once; and as a Report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.config.schema import Config
from runyard.runs.run import Run
from runyard.tracking.recorder import Recorder
from runyard.tracking.wandb import record, sync
from tests.support.fake_runs import fabricate
from tests.support.life import begin, epochs
from tests.support.settings import PATIENCE_S
from tests.support.waiting import until
from tests.support.wandb_server import WandbServer

pytestmark = pytest.mark.slow
IDS = ("20260921-000000-paper-aaaa", "20260921-000001-paper-bbbb")


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_config: Callable[..., Config]) -> Path:
    """Two runs that differ in their learning rate, one of them restarted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    config = make_config("experiment=paper", "epochs=6")
    for at, (run_id, lr) in enumerate(zip(IDS, (0.001, 0.002), strict=True)):
        fabricate(tmp_path / "runs", config, run_id, settings={"optim.lr": lr}, top1=0.92 - 0.02 * at,
                  restarts=(3,) * at, test_images=500)  # fmt: skip
    return tmp_path / "runs"


@pytest.fixture
def sent(runs_dir: Path, server: WandbServer) -> WandbServer:
    """W&B has both."""
    for run_id in IDS:
        assert sync.send_missing(sync.plan_sync(Run.open(runs_dir / run_id)), lambda sent: None, pytest.fail)
    return server


def compare(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runyard", "compare", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == code, done.stderr
    return done


def refusal(*words: str) -> str:
    done = compare(*words, code=2)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1), done.stderr
    return done.stderr


def test_the_table_and_tests_are_those_of_the_directories(sent: WandbServer, runs_dir: Path, tmp_path: Path) -> None:
    here = compare("--all", "--runs-dir", str(runs_dir), "--target", "0.9", "--json")
    page = tmp_path / "page.html"
    there = compare("--wandb", "a-team/runyard", "--target", "0.9", "--json", "--html", str(page))
    assert json.loads(there.stdout) == json.loads(here.stdout)
    (pair,) = json.loads(there.stdout)["pairs"]
    assert pair["mcnemar"]["p"] < 1, "the predictions came, too"
    assert "optim.lr" in page.read_text()
    one = compare("--wandb", "runyard", IDS[1], "--csv").stdout.splitlines()
    assert len(one) == 2
    assert IDS[1] in one[1], "a run of it, and the key's own entity"


def test_what_has_not_changed_is_not_fetched_again(sent: WandbServer, runs_dir: Path) -> None:
    def fetched() -> int:
        return sent.operations.count("RunFiles")

    compare("--wandb", "a-team/runyard")
    assert fetched() == 2
    compare("--wandb", "a-team/runyard")
    assert fetched() == 2
    sent.run(IDS[0]).files["runyard/metrics.jsonl"] = b""  # and W&B has heard of it again
    assert "without metrics" in compare("--wandb", "a-team/runyard").stderr
    assert fetched() == 3
    del sent.runs[IDS[0]]
    assert IDS[0] not in compare("--wandb", "a-team/runyard", "--json").stdout


def test_runs_of_other_programs_are_passed_over_and_named(sent: WandbServer) -> None:
    sent.run("lightning-1").attributes["project"] = "runyard"
    sent.run("..").attributes["project"] = "runyard"
    sent.runs[".."].files["runyard/run.json"] = b"{}"
    done = compare("--wandb", "a-team/runyard")
    assert "skipped 2 runs that runyard did not log (lightning-1, ...)" in done.stderr
    sent.run("keras-1").attributes["project"] = "others"
    assert "none of its 1 runs was logged by runyard" in refusal("--wandb", "a-team/others")


def test_what_cannot_be_had_is_one_line(server: WandbServer, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--wandb a-team/nothing" in refusal("--wandb", "a-team/nothing")
    assert "add --wandb" in refusal("--all", "--runs-dir", str(runs_dir), "--report", "Ours")
    server.fail.set()
    assert "a-team/runyard" in refusal("--wandb", "a-team/runyard")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "does not answer" in refusal("--wandb", "a-team/runyard")
    monkeypatch.delenv("WANDB_API_KEY")
    assert "no key" in refusal("--wandb", "a-team/runyard")


def test_a_run_that_still_trains_is_there_with_what_it_has(
    runs_dir: Path, server: WandbServer, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "DIRECTORY_EVERY_S", 0.0)
    run = make_run("tracking.mode=online")
    recorder = Recorder(run, active=True)
    for event, fields in (begin(), *epochs(1, 2)):
        recorder.log_event(event, **fields)
        if event == "start":
            recorder.open_wandb(fields)
    until(lambda: b'"epoch": 2' in server.run(run.id).files.get("runyard/metrics.jsonl", b""))
    assert "running 2/4" in compare("--wandb", "a-team/runyard").stdout
    recorder.close()


def test_a_report_has_the_table_and_draws_the_same_runs_in_the_same_colours(sent: WandbServer) -> None:
    done = compare("--wandb", "a-team/runyard", "--report", "Two rates")
    (report,) = sent.reports
    assert (report["displayName"], report["entityName"], report["projectName"]) == ("Two rates", "a-team", "runyard")
    assert f"{sent.url}/a-team/runyard/reports/Two-rates" in done.stderr
    spec = json.loads(report["spec"])
    text = next(block for block in spec["blocks"] if block["type"] == "markdown-block")["content"]
    assert "| 92.00" in text
    assert "McNemar" in text
    grid = next(block for block in spec["blocks"] if block["type"] == "panel-grid")["metadata"]
    drawn = {metric for panel in panels(grid) for metric in panel["config"].get("metrics", [])}
    assert {"test/top1", "test/loss", "train/loss", "train/lr", "speed/images_per_s"} <= drawn
    axes = [column["accessor"] for panel in panels(grid) for column in panel["config"].get("columns", [])]
    assert axes == ["config:optim.value.lr", "summary:top1"], "what differs, and what came of it"
    assert all(run_id in json.dumps(grid["runSets"]) for run_id in IDS)
    colors = grid["customRunColors"]
    assert len({colors[run_id] for run_id in IDS}) == 2


def panels(grid: dict[str, Any]) -> list[dict[str, Any]]:
    return list(grid["panelBankSectionConfig"]["panels"])
