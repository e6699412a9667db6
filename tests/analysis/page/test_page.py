"""compare --html in a real browser: it loads alone, shows what the journals say, and every control works."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runyard.analysis.compare.choose import select_runs
from runyard.analysis.compare.groups import group_runs
from runyard.analysis.figures.cost_figures import pareto
from runyard.analysis.page.disagreements import disagreements
from runyard.config.schema import Config
from runyard.data import manifest
from tests.support.browser import Browser
from tests.support.fake_runs import fabricate
from tests.support.pages import READY, choose_input, lines, page_of, settle

EPOCHS, IMAGES = 6, 400
pytestmark = pytest.mark.slow  # it needs a browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, make_config: Callable[..., Config]) -> Path:
    """Two learning rates of three seeds; the first was interrupted, the last failed half-way."""
    folder = tmp_path_factory.mktemp("page")
    config = make_config("experiment=starter", f"epochs={EPOCHS}", f"data.root={folder / 'data'}")
    for at in range(6):
        rate, seed = (1e-3, 1e-2)[at // 3], at % 3
        path = fabricate(
            folder / "runs",
            config,
            f"run-{at}",
            settings={"optim.lr": rate, "seed": seed},
            test_images=IMAGES,
            top1=0.8 + 0.02 * at + 0.005 * seed,
            restarts=(3,) if at == 0 else (),
            epoch_s=30 + at,
            **({"end": "failed", "done": 3, "message": "loss is nan"} if at == 5 else {}),
        )
        held = json.loads((path / "data.json").read_text())
        held["splits"]["test"] |= {"images": "test_images.npy", "labels": "test_labels.npy"}
        (path / "data.json").write_text(json.dumps(held))
    prepared = manifest.dataset_dir(config.data)
    prepared.mkdir(parents=True)
    np.save(prepared / "test_images.npy", np.random.default_rng(0).integers(0, 255, (IMAGES, 32, 32, 3), np.uint8))
    np.save(prepared / "test_labels.npy", np.arange(IMAGES) % 10)
    return folder / "runs"


@pytest.fixture(scope="module")
def page(runs: Path) -> Path:
    return page_of(runs)


@pytest.fixture
def shown(browser: Browser, page: Path) -> Browser:
    browser.window(1280, 900)
    browser.open(page, READY)
    return browser


def journal(runs: Path, run: int, key: str) -> list[float]:
    rows = [json.loads(line) for line in (runs / f"run-{run}" / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if row["event"] == "epoch"]


def test_the_page_opens_from_a_copied_file_without_a_request_or_a_complaint(
    browser: Browser, page: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "elsewhere.html"
    copied.write_bytes(page.read_bytes())
    for width, dark in ((390, False), (1280, True), (1920, False)):
        browser.window(width, 900, dark=dark, touch=width == 390)
        browser.open(copied, READY)
        assert browser.requests == []
        assert browser.complaints == []
        assert browser.run("document.querySelectorAll('.js-plotly-plot').length") == 10


@pytest.mark.parametrize(
    "bad", ["<img src='http://127.0.0.1:9/x.png'>", "<script>fetch('http://127.0.0.1:9/x')</script>"]
)
def test_a_request_would_be_seen(browser: Browser, tmp_path: Path, bad: str) -> None:
    (tmp_path / "bad.html").write_text(f"<!doctype html><link rel=icon href='data:,'>{bad}")
    browser.open(tmp_path / "bad.html")
    browser.run("new Promise(done => setTimeout(done, 200))")
    assert browser.requests != []
    assert browser.complaints != []


@pytest.mark.parametrize("bad", ["console.error('no')", "nothing.there", "Promise.reject(new Error('no'))"])
def test_a_complaint_would_be_seen(browser: Browser, tmp_path: Path, bad: str) -> None:
    (tmp_path / "bad.html").write_text(f"<!doctype html><link rel=icon href='data:,'><script>{bad}</script>")
    browser.open(tmp_path / "bad.html")
    browser.run("new Promise(done => setTimeout(done, 50))")
    assert browser.complaints != []


def test_every_runs_numbers_are_the_journals(shown: Browser, runs: Path) -> None:
    choose_input(shown, "band", "each")
    for chart, key, factor in (
        ("curve-0", "test_top1", 100),
        ("curve-1", "test_loss", 1),
        ("curve-2", "train_loss", 1),
    ):
        drawn = lines(shown, chart)
        assert len(drawn) == 6
        for at in range(6):
            line = drawn[f"starter-{'ab'[at // 3]}, seed {at % 3}"]
            assert line["y"] == pytest.approx([factor * value for value in journal(runs, at, key)], rel=1e-6)
            assert line["x"] == journal(runs, at, "epoch")


def test_a_groups_line_is_the_mean_over_seeds_and_its_band_one_standard_deviation(shown: Browser, runs: Path) -> None:
    values = 100 * np.array([journal(runs, at, "test_top1") for at in range(3)])
    assert lines(shown)["starter-a"]["y"] == pytest.approx(values.mean(axis=0).tolist(), rel=1e-6)
    bands = "document.getElementById('curve-0').data.filter(t => t.fill === 'toself').map(t => t.y)"
    mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1)
    assert any(band == pytest.approx([*(mean + sd), *(mean - sd)[::-1]], rel=1e-5) for band in shown.run(bands))
    choose_input(shown, "band", "range")
    extremes = [*values.max(axis=0), *values.min(axis=0)[::-1]]
    assert any(band == pytest.approx(extremes, rel=1e-6) for band in shown.run(bands))


def test_a_run_that_failed_is_drawn_by_itself_and_pulls_no_mean(shown: Browser, runs: Path) -> None:
    drawn = lines(shown)
    assert len(drawn["starter-b, seed 2"]["y"]) == 3
    finished = 100 * np.array([journal(runs, at, "test_top1") for at in (3, 4)])
    assert drawn["starter-b"]["y"] == pytest.approx(finished.mean(axis=0).tolist(), rel=1e-6)


def test_the_axis_can_be_steps_wall_time_or_gpu_hours(shown: Browser, runs: Path) -> None:
    choose_input(shown, "band", "each")
    choose_input(shown, "x", "step")
    assert lines(shown)["starter-a, seed 1"]["x"] == journal(runs, 1, "step")
    began = json.loads((runs / "run-0" / "metrics.jsonl").read_text().splitlines()[0])["t"]
    choose_input(shown, "x", "wall")
    wall = [(t - began) / 3600 for t in journal(runs, 0, "t")]
    assert lines(shown)["starter-a, seed 0"]["x"] == pytest.approx(wall, rel=1e-6)
    choose_input(shown, "x", "gpu")
    assert lines(shown)["starter-a, seed 1"]["x"] == pytest.approx(
        [4 * 31 * e / 3600 for e in range(1, EPOCHS + 1)], rel=1e-6
    )


def test_a_restart_is_marked_where_the_run_went_on(shown: Browser, runs: Path) -> None:
    marks = "document.getElementById('curve-0').data.find(t => t.name === 'restarts')"
    assert shown.run(f"{marks}.x") == pytest.approx([2.5])
    choose_input(shown, "x", "wall")
    rows = [json.loads(line) for line in (runs / "run-0" / "metrics.jsonl").read_text().splitlines()]
    first, second = (row["t"] for row in rows if row["event"] == "start")
    assert shown.run(f"{marks}.x") == pytest.approx([(second - first) / 3600], rel=1e-6)
    assert "starter-a, seed 0" in shown.run(f"{marks}.text[0]")
    assert "step 975" in shown.run(f"{marks}.text[0]")


def test_a_group_and_a_single_run_can_be_hidden_everywhere(shown: Browser, runs: Path) -> None:
    shown.run("document.querySelector('#runs li:nth-child(1) .row input').click()")  # starter-b, the better
    settle(shown)
    assert set(lines(shown)) == {"starter-a"}
    assert shown.run("document.getElementById('classes-chart').data.map(t => t.name).filter(Boolean)") == ["starter-a"]
    assert shown.run("document.getElementById('cost-chart').data.find(t => t.name === 'groups').x.length") == 1
    shown.run("document.querySelectorAll('#runs li:nth-child(2) details input')[0].click()")
    settle(shown)
    rest = 100 * np.array([journal(runs, at, "test_top1") for at in (1, 2)])
    assert lines(shown)["starter-a"]["y"] == pytest.approx(rest.mean(axis=0).tolist(), rel=1e-6)
    assert shown.run("document.querySelector('#runs li:nth-child(2) .row input').indeterminate")
    shown.run("document.getElementById('none').click()")
    settle(shown)
    assert lines(shown) == {}
    assert shown.complaints == []


def test_smoothing_and_log_axes_do_what_they_say_and_can_be_undone(shown: Browser, runs: Path) -> None:
    values = lines(shown)["starter-a"]["y"]
    slider = "document.querySelector('[name=smooth]')"
    slide = f"(value => {{ {slider}.value = value; {slider}.dispatchEvent(new Event('input')); }})"
    shown.run(f"{slide}(0.5)")
    settle(shown)
    weights = [0.5 ** (len(values) - 1 - at) for at in range(len(values))]
    assert lines(shown)["starter-a"]["y"][-1] == pytest.approx(np.average(values, weights=weights))
    shown.run(f"{slide}(0)")
    for axis in "xy":
        shown.run(f"document.getElementsByName('log-{axis}')[0].click()")
    settle(shown)
    kinds = "(l => [l.xaxis.type, l.yaxis.type])(document.getElementById('curve-1').layout)"
    assert shown.run(kinds) == ["log", "log"]
    assert lines(shown)["starter-a"]["y"] == values


def test_controls_are_reached_and_worked_by_keyboard_and_the_focus_is_seen(shown: Browser) -> None:
    shown.run("document.activeElement.blur()")
    met = []
    for _ in range(60):
        shown.press("Tab")
        met.append(
            shown.run("document.activeElement.id || document.activeElement.name || document.activeElement.tagName")
        )
        if met[-1] == "x":
            break
    assert {"theme", "all", "none", "best", "x"} <= set(met)
    assert shown.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    shown.run("document.querySelector('#runs input').focus()")
    before = len(lines(shown))
    shown.press(" ")
    settle(shown)
    assert len(lines(shown)) < before
    named = shown.run("[...document.querySelectorAll('input,select')].every(i => i.labels.length || i.ariaLabel)")
    assert named, "a control without a label"


def test_every_chart_has_its_numbers_as_a_table(shown: Browser, runs: Path) -> None:
    shown.run("document.querySelectorAll('details.values').forEach(d => { d.open = true; })")
    settle(shown)
    for chart in ("curve-0", "cost-chart", "sweep-chart", "classes-chart", "matrices"):
        assert shown.run(f"document.querySelectorAll('#{chart}-values tbody td').length") > 1, chart
    last = 100 * np.mean([journal(runs, at, "test_top1")[-1] for at in range(3)])
    assert f"{last:.2f}" in shown.run("document.getElementById('cost-chart-values').textContent")


def test_a_table_of_values_is_the_journals_by_epoch_however_it_is_drawn(shown: Browser, runs: Path) -> None:
    choose_input(shown, "band", "each")
    choose_input(shown, "x", "step")
    slider = "document.querySelector('[name=smooth]')"
    shown.run(f"{slider}.value = 0.9; {slider}.dispatchEvent(new Event('input'))")
    shown.run("document.getElementById('curve-0-values').open = true")
    settle(shown)
    rows = shown.run(
        "[...document.querySelectorAll('#curve-0-values tr')].map(r => [...r.children].map(c => c.textContent))"
    )
    head, *rows = rows
    assert head[0] == "Epoch (at: Step)"
    assert [row[0] for row in rows] == [str(epoch) for epoch in range(1, EPOCHS + 1)]
    for at in range(6):
        cells = [row[head.index(f"starter-{'ab'[at // 3]}, seed {at % 3}")] for row in rows]
        top1, steps = journal(runs, at, "test_top1"), journal(runs, at, "step")
        assert cells[len(top1) :] == [""] * (EPOCHS - len(top1))  # the one that failed has no more
        for cell, value, step in zip(cells, top1, steps, strict=False):
            drawn, place = cell.split(" at ")
            assert float(drawn) == pytest.approx(100 * value, rel=1e-4)
            assert place == str(step)


def test_whole_numbers_keep_their_zeros_in_tables_and_ticks(shown: Browser) -> None:
    shown.run("view.x = 'step'")
    points = "[[12000, 30000, 0, 0, 1, 100], [24000, 0.5, 0, 0, 1, 200]]"
    assert shown.run(f"valuesOf([['a', {points}, ['', '']]], 'Step')[1]") == [
        [100, "30000 at 12000"],
        [200, "0.5 at 24000"],
    ]
    assert shown.run("[16384, 1e9, 0.00056, 'word'].map(said).map(String)") == ["16384", "1.0e+9", "5.6e-4", "word"]
    assert shown.run("whole(0.12, 1.2).ticktext.map(String)") == ["0.1", "0.2", "0.5", "1", "2", "5"]


def test_pointing_at_a_line_says_the_journals_number(shown: Browser, runs: Path) -> None:
    choose_input(shown, "band", "each")
    shown.run("showOnly(comparison.groups.slice(1)); document.getElementById('curve-0').scrollIntoView()")
    settle(shown)
    line, value = "starter-a, seed 2", 100 * journal(runs, 2, "test_top1")[3]
    x, y = shown.run(
        "(g => { const l = g._fullLayout, r = g.getBoundingClientRect(); return ["
        f"r.left + l._size.l + l.xaxis.l2p(4), r.top + l._size.t + l.yaxis.l2p({value})]; }})"
        "(document.getElementById('curve-0'))"
    )
    for step in (6, 4, 2, 0):  # plotly looks at a moving pointer now and then
        shown.move(x - step, y)
        settle(shown)
    shown.wait("document.querySelector('#curve-0 .hoverlayer text')")
    said = shown.run("document.querySelector('#curve-0 .hoverlayer').textContent")
    assert line in said
    assert "Epoch 4" in said
    assert f"{value:.6g}" in said


def test_the_confusion_matrices_and_their_difference_are_the_runs_own(shown: Browser, runs: Path) -> None:
    def matrix(run: int) -> np.ndarray:
        rows = [json.loads(line) for line in (runs / f"run-{run}" / "metrics.jsonl").read_text().splitlines()]
        return np.array(next(row["confusion"] for row in rows if row["event"] == "final"))

    text = "document.getElementById('matrix-{}').data.map(t => t.text)"
    right, wrong = (np.array(part) for part in shown.run(text.format("first")))
    drawn = np.where(right != "", right, wrong).astype(int)
    assert shown.run("document.getElementById('first-title').textContent") == "A: starter-a, seed 0"
    assert shown.run("document.getElementById('second-title').textContent") == "B: starter-b, seed 0"
    assert np.array_equal(drawn, matrix(0))
    change = [
        [int(cell.replace("\N{MINUS SIGN}", "-") or 0) for cell in row]
        for row in shown.run(text.format("difference"))[0]
    ]
    assert np.array_equal(change, matrix(3) - matrix(0))


def test_disagreements_are_counted_over_all_test_images_and_shown_as_they_are(shown: Browser, runs: Path) -> None:
    a, b = (np.load(runs / f"run-{at}" / "predictions.npz") for at in (0, 3))
    right_a, right_b = a["predicted"] == a["label"], b["predicted"] == b["label"]
    differ = a["predicted"] != b["predicted"]
    said = shown.run("document.getElementById('disagree-note').textContent")
    assert (
        f"Of {IMAGES} test images they disagree on {differ.sum()}: A alone is right on {(right_a & differ).sum()}"
        in said
    )
    assert f"B alone on {(right_b & differ).sum()}" in said
    faces = shown.run(
        "[...document.querySelectorAll('#faces figure')].map(f => [f.querySelector('img').alt, f.textContent])"
    )
    assert 20 < len(faces) <= 72
    classes = json.loads((runs / "run-0" / "data.json").read_text())["classes"]
    for alt, words in faces:
        index = int(alt.split()[-1])
        mark = {True: "✓", False: "✗"}
        assert words == (
            f"{classes[a['label'][index]]}A {mark[bool(right_a[index])]} {classes[a['predicted'][index]]}"
            f"B {mark[bool(right_b[index])]} {classes[b['predicted'][index]]}"
        )
    shown.run("document.getElementById('swap').click()")
    assert f"A alone is right on {(right_b & differ).sum()}" in shown.run(
        "document.getElementById('disagree-note').textContent"
    )


def test_images_come_from_the_first_run_whose_data_is_here(
    runs: Path, tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    """A run that was copied from elsewhere names a folder that is not here."""
    for at, root in enumerate((tmp_path / "elsewhere", runs.parent / "data")):
        config = make_config("experiment=starter", f"epochs={EPOCHS}", f"data.root={root}")
        how = {"settings": {"name": f"n{at}"}, "test_images": IMAGES, "top1": 0.8 + at / 10}
        path = fabricate(tmp_path / "runs", config, f"run-{at}", **how)
        (path / "data.json").write_bytes((runs / "run-0" / "data.json").read_bytes())
    found = disagreements(group_runs(select_runs([], everything=True, runs_dir=tmp_path / "runs").runs))
    assert (len(found["images"]) > 20, found["missing"]) == (True, "")
    shutil.rmtree(tmp_path / "runs" / "run-1")
    only = [group_runs(select_runs([], everything=True, runs_dir=tmp_path / "runs").runs)[0]] * 2
    assert "elsewhere" in disagreements(only)["missing"]


def test_the_pareto_front_is_the_one_of_the_figures(shown: Browser) -> None:
    data = shown.run("document.getElementById('cost-chart').data.map(t => ({ name: t.name, x: t.x, y: t.y }))")
    points = {trace["name"]: list(zip(trace["x"], trace["y"], strict=True)) for trace in data}
    assert points["front"] == [list(p) for p in pareto(points["groups"])] or points["front"] == pareto(points["groups"])


def test_the_numbers_in_a_dark_matrix_can_be_read(browser: Browser, page: Path) -> None:
    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    browser.window(1280, 900, dark=True)
    browser.open(page, READY)
    ends = browser.run("document.getElementById('matrix-first').data.map(t => t.colorscale[1][1])")
    assert all(1.05 / (luminance(end) + 0.05) > 4.5 for end in ends), "white on the strongest cells"
    assert 1.05 / (luminance(browser.run("inks().right")) + 0.05) < 4.5, "the page's own blue would not do"


def test_light_and_dark_follow_the_reader_and_the_button(browser: Browser, page: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    line = "document.getElementById('curve-0').data.find(t => t.name).line.color"
    seen = []
    for dark in (False, True):
        browser.window(1280, 900, dark=dark)
        browser.open(page, READY)
        seen.append([browser.run(ground), browser.run(line)])
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]
    browser.run("document.getElementById('theme').click()")
    settle(browser)
    assert [browser.run(ground), browser.run(line)] == seen[0]


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920, 2560])
def test_nothing_sticks_out_at_the_side(browser: Browser, page: Path, width: int) -> None:
    browser.window(width, 900)
    browser.open(page, READY)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_a_chart_can_be_saved_but_sent_nowhere(shown: Browser) -> None:
    buttons = shown.run("[...new Set([...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title))]")
    assert buttons == ["Download plot as a PNG", "Reset axes"]
