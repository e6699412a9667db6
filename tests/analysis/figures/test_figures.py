"""compare --png: the same numbers as figures for a paper, told apart in black and white, whatever the names."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runyard.analysis.compare import choose, groups
from runyard.analysis.compare.groups import Group
from runyard.analysis.figures.build import (
    FIGURE_FORMATS,
    RESTART_GID,
    curves,
    curves_by_cost,
    mean_and_std,
    parallel_coordinates,
    write_figures,
)
from runyard.analysis.figures.class_figures import confusion_difference, confusions, per_class_accuracy
from runyard.analysis.figures.cost_figures import _ticks, accuracy_vs_cost, pareto
from runyard.analysis.figures.group_style import (
    COLORS_DARK,
    COLORS_LIGHT,
    MATPLOTLIB_LINES,
    MATPLOTLIB_MARKERS,
    MAX_NAMED_STYLES,
    group_styles,
)
from runyard.analysis.report import theme
from runyard.cli.main import main
from runyard.config.schema import Config
from runyard.errors import UserError
from tests.support.fake_runs import fabricate

HEAVY = ("torch", "plotly", "matplotlib", "PIL", "wandb")


@pytest.fixture
def make(tmp_path: Path, make_config: Callable[..., Config]) -> Callable[..., list[Group]]:
    """``make({...}, {...})`` gives the groups of runs fabricated with these arguments."""
    config = make_config("experiment=starter", "epochs=5")

    def made(*runs: dict[str, Any]) -> list[Group]:
        for at, how in enumerate(runs):
            fabricate(tmp_path / "runs", config, f"run-{at:03}", **{"test_images": 200, **how})
        return groups.group_runs(choose.select_runs([], everything=True, runs_dir=tmp_path / "runs").runs)

    return made


def two_by_three(make: Callable[..., list[Group]]) -> list[Group]:
    return make(
        *(
            {"settings": {"optim.lr": rate, "seed": seed}, "top1": 0.8 + 10 * rate + 0.01 * seed, "ranks": 1 + k}
            for k, rate in enumerate((1e-3, 5e-3))
            for seed in range(3)
        )
    )


@pytest.mark.slow
def test_every_figure_is_written_as_png_pdf_and_svg(make: Callable[..., list[Group]], tmp_path: Path) -> None:
    made = write_figures(tmp_path / "figures", two_by_three(make))
    assert made == [
        "curves", "curves_by_cost", "cost", "classes", "confusions", "confusion_difference", "settings"
    ]  # fmt: skip
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    for name in made:
        for kind in FIGURE_FORMATS:
            assert (tmp_path / "figures" / f"{name}.{kind}").read_bytes().startswith(starts[kind])


def test_a_line_is_the_mean_over_seeds_with_one_standard_deviation(make: Callable[..., list[Group]]) -> None:
    found = two_by_three(make)
    values = 100 * np.stack([run.metric("test_top1") for run in found[0].runs])
    axis = curves(found).axes[0]
    assert axis.lines[0].get_ydata() == pytest.approx(values.mean(axis=0))
    edge = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert edge.max() == pytest.approx((values.mean(axis=0) + values.std(axis=0, ddof=1)).max())
    assert mean_and_std(found[0], "test_top1")[:, 3].tolist() == [3] * 5


def test_the_accuracies_and_hours_are_the_runs_own(make: Callable[..., list[Group]]) -> None:
    found = two_by_three(make)
    large = [
        line
        for line in accuracy_vs_cost(found).axes[0].lines
        if line.get_markersize() == 6 and len(line.get_xdata()) == 1
    ]
    assert [line.get_xdata()[0] for line in large] == pytest.approx([g.mean("gpu_hours") for g in found])
    assert [line.get_ydata()[0] for line in large] == pytest.approx([100 * g.mean("last") for g in found])


def test_class_accuracies_and_their_difference_are_those_of_the_confusion_matrices(
    make: Callable[..., list[Group]],
) -> None:
    found = make({"settings": {"optim.lr": 1e-3}, "top1": 0.8}, {"settings": {"optim.lr": 1e-2}, "top1": 0.9})
    worse, better = (run.confusion() for group in found for run in group.runs)
    assert worse is not None
    assert better is not None
    axis = per_class_accuracy(found).axes[0]
    named = dict(zip([t.get_text() for t in axis.get_yticklabels()], axis.lines[0].get_xdata(), strict=True))
    assert named["cat"] == pytest.approx(100 * worse[3, 3] / worse[3].sum())
    cells = {
        tuple(round(p - 0.5) for p in text.get_position()): text.get_text()
        for text in confusion_difference(found).axes[0].texts
    }
    change = 100 * (better[3, 3] / better[3].sum() - worse[3, 3] / worse[3].sum())
    assert float(cells[3, 3].replace("\N{MINUS SIGN}", "-")) == pytest.approx(change, abs=0.051)


def test_by_cost_a_line_stands_where_its_runs_had_spent_that_much_and_restarts_are_marked(
    make: Callable[..., list[Group]],
) -> None:
    found = make({"settings": {"seed": 0}, "restarts": (3,)}, {"settings": {"seed": 1}, "epoch_s": 72.0})
    axis = curves_by_cost(found).axes[0]
    (marks,) = [line for line in axis.lines if line.get_gid() == RESTART_GID]
    assert marks.get_xdata() == pytest.approx([2.5 * 36 * 4 / 3600])
    (line,) = [line for line in axis.lines if line.get_gid() != RESTART_GID]
    spent = np.mean([run.series["gpu_hours"] for run in found[0].runs], axis=0)
    assert line.get_xdata() == pytest.approx(spent)
    assert curves_by_cost(found).axes[-1].get_xlabel() == "GPU-hours"


def test_ticks_of_a_log_axis_of_hours_are_whole_numbers_that_do_not_meet() -> None:
    assert _ticks(0.12, 1.2) == pytest.approx([0.1, 0.2, 0.5, 1])
    assert _ticks(0.02, 900) == pytest.approx([0.1, 1, 10, 100, 1000])


def test_without_a_gpu_cost_is_core_hours(make: Callable[..., list[Group]]) -> None:
    assert curves_by_cost(make({"device": "cpu"})).axes[-1].get_xlabel() == "Core-hours"


def test_the_confusion_matrices_stand_side_by_side_the_better_first(make: Callable[..., list[Group]]) -> None:
    found = make({"settings": {"optim.lr": 1e-3}, "top1": 0.8}, {"settings": {"optim.lr": 1e-2}, "top1": 0.9})
    left, right = confusions(found).axes
    matrix = found[1].runs[0].confusion()
    assert matrix is not None
    cells = {tuple(round(p - 0.5) for p in text.get_position()): text.get_text() for text in left.texts}
    assert float(cells[3, 3]) == pytest.approx(100 * matrix[3, 3] / matrix[3].sum(), abs=0.051)
    assert (left.get_title("left"), right.get_title("left")) == (
        "starter-b, % of the class", "starter-a, % of the class")  # fmt: skip
    assert len(confusions(found[:1]).axes) == 1


def test_the_pareto_front_holds_what_nothing_cheaper_equals() -> None:
    points = [(3.0, 90.0), (1.0, 80.0), (2.0, 85.0), (2.5, 84.0), (4.0, 90.0), (2.0, 70.0)]
    assert pareto(points) == [(1.0, 80.0), (2.0, 85.0), (3.0, 90.0)]


def test_groups_differ_without_colour_too_and_no_two_look_alike(make: Callable[..., list[Group]]) -> None:
    one = make({"settings": {"optim.lr": 1e-3}})
    every = group_styles(one * MAX_NAMED_STYLES)
    assert (
        len({(look.line, look.marker) for look in every})
        == len({(look.light, look.line) for look in every})
        == MAX_NAMED_STYLES
    )
    assert {look.line for look in every} <= set(MATPLOTLIB_LINES)
    assert {look.marker for look in every} <= set(MATPLOTLIB_MARKERS)


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize(
    ("colors", "ground"), [(COLORS_LIGHT, theme.LIGHT.background), (COLORS_DARK, theme.DARK.background)]
)
def test_every_color_stands_out_from_its_ground(colors: tuple[str, ...], ground: str) -> None:
    for color in colors:
        high, low = sorted((luminance(color), luminance(ground)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3, color


def test_more_groups_than_can_be_told_apart_are_coloured_by_how_good_they_are(make: Callable[..., list[Group]]) -> None:
    found = make(
        *({"settings": {"optim.lr": 1e-3 * (1 + at)}, "top1": 0.7 + 0.005 * at} for at in range(MAX_NAMED_STYLES + 1))
    )
    shades = [luminance(look.light) for look in group_styles(found)]
    assert shades == sorted(shades, reverse=True)


@pytest.mark.parametrize("name", ["a" * 80, "$x_$ $", "猫", "<b>&amp;", "_hidden", "\\frac{1}"])
def test_any_name_can_be_drawn_and_no_legend_is_wider_than_the_column(
    make: Callable[..., list[Group]], name: str
) -> None:
    names = (
        {"settings": {"name": n, "optim.lr": 10.0**-at}, "top1": 0.9 - at / 10}
        for at, n in enumerate((name, name + "2"))
    )
    found = make(*names)
    figure = curves(found)
    with warnings.catch_warnings(action="ignore"):
        figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert len(figure.legends[0].get_texts()) == 2
    assert 0 <= legend.x0 < legend.x1 <= figure.bbox.width
    for draw in (
        curves,
        curves_by_cost,
        accuracy_vs_cost,
        per_class_accuracy,
        confusions,
        confusion_difference,
        parallel_coordinates,
    ):
        assert theme.save(draw(found), "png", 60).startswith(b"\x89PNG")


def test_runs_without_metrics_and_single_runs_have_the_figures_there_are(
    make: Callable[..., list[Group]], tmp_path: Path
) -> None:
    found = make(
        {"settings": {"name": "a"}},
        {"settings": {"name": "b"}, "done": 0, "end": "failed"},
        {"settings": {"name": "c"}, "done": 2, "end": ""},
        {"settings": {"name": "d"}, "device": "cpu"},
    )
    assert "curves" in write_figures(tmp_path / "figures", found)
    assert parallel_coordinates(found[:1]) is None
    assert confusion_difference(found[:1]) is None
    assert accuracy_vs_cost(found[:1]) is None
    assert curves(found[1:2]) is None


def test_what_has_not_finished_is_hollow_and_on_no_front(make: Callable[..., list[Group]]) -> None:
    found = make({"top1": 0.7}, {"settings": {"name": "under way"}, "top1": 0.99, "done": 4, "end": ""})
    axis = accuracy_vs_cost(found).axes[0]
    large = [line for line in axis.lines if line.get_markersize() == 6 and len(line.get_xdata()) == 1]
    fills = [line.get_markerfacecolor() for line in large if line.get_marker() != "None"]
    assert sorted(fill == "none" for fill in fills) == [False, True]
    assert axis.lines[0].get_ydata() == pytest.approx([70])


def test_of_mixed_data_sets_the_classes_of_one_are_drawn(make: Callable[..., list[Group]], tmp_path: Path) -> None:
    make({"settings": {"name": "a"}}, {"settings": {"name": "b"}}, {"settings": {"name": "c"}, "data": "1"})
    path = tmp_path / "runs" / "run-002" / "metrics.jsonl"
    path.write_text(path.read_text().replace("airplane", "albatross"))
    found = groups.group_runs(choose.select_runs([], everything=True, runs_dir=tmp_path / "runs").runs)
    assert "of cifar10 alone" in per_class_accuracy(found).axes[0].get_xlabel()
    assert per_class_accuracy(found[:2]).axes[0].get_xlabel() == "Right, % of the class"
    assert confusion_difference(found) is not None


def test_a_matrix_of_another_size_than_the_classes_is_drawn_with_numbers_and_beside_no_other(
    make: Callable[..., list[Group]], tmp_path: Path
) -> None:
    make({"settings": {"name": "a"}}, {"settings": {"name": "b"}})
    path = tmp_path / "runs" / "run-001" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row | {"confusion": [[90, 10], [20, 80]]} if row["event"] == "final" else row for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = groups.group_runs(choose.select_runs([], everything=True, runs_dir=tmp_path / "runs").runs)
    assert len(per_class_accuracy(found).axes[0].get_yticks()) == 10
    assert confusion_difference(found) is None
    alone = confusions(found[1:])
    assert [tick.get_text() for tick in alone.axes[0].get_xticklabels()] == ["class 0", "class 1"]


def test_a_picture_instead_of_a_folder_is_refused(make: Callable[..., list[Group]], tmp_path: Path) -> None:
    found = make({})
    with pytest.raises(
        UserError, match=r"expected a folder, since each figure is a file of its own; try --png .*/out$"
    ):
        write_figures(tmp_path / "out.png", found)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        write_figures(tmp_path / "file", found)


@pytest.mark.slow
def test_the_verb_writes_both_and_says_so_beside_its_table(
    make: Callable[..., list[Group]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make({"settings": {"optim.lr": 1e-3}}, {"settings": {"optim.lr": 1e-2}, "top1": 0.8})
    where = [
        "--runs-dir",
        str(tmp_path / "runs"),
        "--html",
        str(tmp_path / "x.html"),
        "--png",
        str(tmp_path / "figures"),
    ]
    assert main(["compare", "--all", *where, "--json"]) in (0, None)
    out, err = capsys.readouterr()
    assert out.startswith("{")
    assert f"wrote {tmp_path / 'x.html'}" in err
    assert (tmp_path / "figures" / "curves.pdf").exists()
    assert (tmp_path / "x.html").stat().st_size > 1_000_000


def loaded(*argv: str) -> set[str]:
    said = f"print([m for m in {HEAVY} if m in sys.modules])"
    code = f"import sys; from runyard.cli.main import main; main({list(argv)!r}); {said}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ast.literal_eval(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_the_table_alone_loads_no_drawing_library(make: Callable[..., list[Group]], tmp_path: Path) -> None:
    make({})
    assert loaded("compare", "--all", "--runs-dir", str(tmp_path / "runs")) == set()
    drawn = loaded("compare", "--all", "--runs-dir", str(tmp_path / "runs"), "--png", str(tmp_path / "figures"))
    assert "matplotlib" in drawn
    assert "torch" not in drawn
