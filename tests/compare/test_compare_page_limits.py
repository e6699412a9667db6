"""compare --html of what nobody wishes for: hostile names, runs that failed, many runs, no place to write."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runyard.compare import choose, groups, pairs, table
from runyard.compare.page import build, tables
from runyard.compare.page.build import write_page
from runyard.config import Config
from runyard.errors import UserError
from tests.browser import Browser
from tests.compare.fabricate import fabricate
from tests.compare.pages import READY, choose_input, lines, page_of

pytestmark = pytest.mark.slow  # it needs a browser
EVIL = [
    "<script>document.title='live'</script>",
    '"><img src=x onerror="document.title=1">',
    "a_" * 40,
    "猫$x_$<b>b</b>",
]


def test_names_are_text_however_they_look(browser: Browser, tmp_path: Path, make_config: Callable[..., Config]) -> None:
    config = make_config("experiment=starter", "epochs=2")
    for at, name in enumerate(EVIL):
        fabricate(
            tmp_path / "runs", config, f"run-{at}", settings={"name": name}, test_images=100, top1=0.8 + 0.01 * at
        )
    browser.window(1280, 900)
    browser.open(page_of(tmp_path / "runs"), READY)
    assert browser.run("document.title") == "4 runs compared"
    names = browser.run("[...document.querySelectorAll('#runs .name')].map(n => n.textContent)")
    assert names == EVIL[::-1]
    assert browser.run("document.querySelectorAll('main script, main img, main b b').length") == 0
    assert browser.complaints == []
    browser.window(390, 844)
    browser.open(tmp_path / "runs.html", READY)
    assert browser.run("document.documentElement.scrollWidth") == 390


def test_without_escaping_the_names_would_be_live(
    browser: Browser, tmp_path: Path, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "escape", lambda text: text)
    config = make_config("experiment=starter", "epochs=2")
    fabricate(tmp_path / "runs", config, "run-0", settings={"name": "<b class='live'>x"})
    browser.open(page_of(tmp_path / "runs"), READY)
    assert browser.run("document.querySelectorAll('.live').length") > 0


def test_runs_that_failed_at_once_or_run_still_or_lack_measures_have_their_place(
    browser: Browser, tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    config = make_config("experiment=starter", "epochs=4")
    fabricate(tmp_path / "runs", config, "failed", settings={"name": "failed"}, done=0, end="failed", message="x")
    fabricate(tmp_path / "runs", config, "running", settings={"name": "running"}, done=2, end="")
    fabricate(tmp_path / "runs", config, "cpu", settings={"name": "cpu", "data.name": "other"}, device="cpu", data="1")
    browser.window(1280, 900)
    browser.open(page_of(tmp_path / "runs"), READY)
    assert browser.complaints == []
    assert set(lines(browser)) == {"running", "cpu"}
    assert "failed 0/4" in browser.run("document.getElementById('runs').textContent")
    assert "without metrics so far: run failed" in browser.run("document.querySelector('main').textContent")
    choose_input(browser, "x", "core")
    assert browser.complaints == []


def test_the_page_of_50_runs_of_200_epochs_is_at_most_5_mb(
    browser: Browser, tmp_path: Path, make_config: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("experiment=starter", "epochs=200")
    for at in range(50):
        rate = 10 ** (-4 + 3 * math.sqrt(at / 50))
        fabricate(
            tmp_path / "runs",
            config,
            f"run-{at:02}",
            settings={"optim.lr": rate},
            test_images=10_000,
            top1=0.85 + at / 1000,
        )
    page = page_of(tmp_path / "runs")
    assert page.stat().st_size <= 5_000_000
    browser.window(1280, 900)
    browser.open(page, READY)
    assert browser.complaints == []
    drawn = [
        browser.open(page, READY) and float(browser.run("document.documentElement.dataset.drawn")) for _ in range(3)
    ]
    with capsys.disabled():
        print(
            f"\n50 runs x 200 epochs: {page.stat().st_size / 1e6:.2f} MB, first drawing after {min(drawn):.0f} ms",
            end=" ",
        )


def test_a_page_that_cannot_be_written_is_one_line(
    tmp_path: Path, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    fabricate(tmp_path / "runs", make_config("experiment=starter", "epochs=2"), "run-0")
    chosen = choose.choose([], everything=True, runs_dir=tmp_path / "runs")
    rows = table.rows(groups.group(chosen.runs))
    missing = tmp_path / "no" / "folder" / "x.html"
    with pytest.raises(UserError, match=f"--html {missing}: cannot write it") as caught:
        write_page(missing, rows, pairs.compare([row.group for row in rows]))
    assert os.linesep not in str(caught.value)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="plotly is not installed here"):
        write_page(tmp_path / "x.html", rows, pairs.compare([row.group for row in rows]))
