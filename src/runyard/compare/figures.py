"""The comparison as figures for a paper: one column wide, readable in print and for the colour-blind.

Groups differ by colour, line and marker, as on the page. Every figure is written as .png (300 dpi), .pdf and .svg.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runyard.compare.groups import Group, differing, written
from runyard.compare.looks import MATPLOTLIB_LINES, MATPLOTLIB_MARKERS, RAMP_LIGHT, Look, by_score, looks
from runyard.compare.runs import History
from runyard.compare.text import shortened
from runyard.errors import UserError
from runyard.files import write_atomic
from runyard.report.theme import LIGHT, drawing, mix, save

KINDS = ("png", "pdf", "svg")
DPI = 300
COLUMN_IN = 3.5  # one of two columns
LONGEST = 30  # characters of a name in a legend
MOST_NAMED = 12  # classes whose differences are written in their cells
MOST_AXES, MOST_CLASSES = 6, 100
PANELS = (("test_top1", "Test accuracy (%)", 100), ("test_loss", "Test loss", 1))


def write_figures(folder: Path, groups: Sequence[Group]) -> list[str]:
    """Write what the runs have figures for into ``folder``, which is made; returns the figures' names.

    Raises:
        UserError: the folder cannot be written, or its name is that of a picture.
    """
    if folder.suffix.lower().lstrip(".") in KINDS:
        raise UserError(f"--png {folder}: expected a folder, since each figure is a file of its own; "
                        f"try --png {folder.with_suffix('')}")
    made = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in FIGURES.items():
            figure = draw(groups)
            if figure is not None:
                for kind in KINDS:
                    write_atomic(folder / f"{name}.{kind}", save(figure, kind, DPI))
                made.append(name)
    except OSError as error:
        raise UserError(f"--png {folder}: cannot write there ({error.strerror}); name a folder you can write") from error
    return made


def curves(groups: Sequence[Group]) -> Any:
    """Test accuracy and loss by epoch: means over seeds, with a band of one standard deviation."""
    panels = [panel for panel in PANELS if any(np.isfinite(run.measure(panel[0])).any() for g in groups for run in g.runs)]
    if not panels:
        return None
    with drawing(LIGHT) as figure:
        made = figure(figsize=(COLUMN_IN, 1.95 * len(panels) + _legend_in(groups)), layout="constrained")
        for axis, (measure, title, factor) in zip(made.subplots(len(panels), 1, squeeze=False).ravel(), panels, strict=True):
            for group, look in zip(groups, looks(groups), strict=True):
                _line(axis, group, look, measure, factor, many=by_score(groups))
            _furnish(axis, "", title)
        made.axes[-1].set_xlabel("Epoch")
        banded = any(group.n > 1 for group in groups)
        _legend(made, groups, "line: mean over seeds; band: ± standard deviation" if banded else "", line=True)
    return made


def cost(groups: Sequence[Group]) -> Any:
    """Test accuracy against GPU-hours, or core-hours where no run had a GPU, with the Pareto front."""
    name, title = ("gpu_hours", "GPU-hours") if any(g.mean("gpu_hours") > 0 for g in groups) else ("core_hours", "Core-hours")
    points = [(g, look, g.mean(name), 100 * g.mean("last")) for g, look in zip(groups, looks(groups), strict=True)]
    points = [point for point in points if point[2] > 0 and math.isfinite(point[3])]
    if not points:
        return None
    with drawing(LIGHT) as figure:
        made = figure(figsize=(COLUMN_IN, 2.5 + _legend_in(groups)), layout="constrained")
        axis = made.subplots()
        front = pareto([(x, y) for _, _, x, y in points])
        axis.step(*zip(*front, strict=True), where="post", color=LIGHT.muted, linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=1)
        for group, look, x, y in points:
            own = {"color": look.light, "marker": MATPLOTLIB_MARKERS[look.marker], "linestyle": "none", "zorder": 3}
            if group.n > 1:
                axis.plot(group.values(name), 100 * group.values("last"), markersize=2.6, alpha=0.55, **{**own, "zorder": 2})
            edge = LIGHT.ink if (x, y) in front else "none"
            axis.plot([x], [y], markersize=6, markeredgecolor=edge, markeredgewidth=0.9, **own)
        hours = [x for _, _, x, _ in points]
        if max(hours) > 8 * min(hours):
            axis.set_xscale("log")
        _furnish(axis, title, "Test accuracy, last epoch (%)")
        seeds = "small: single seeds; " if any(group.n > 1 for group in groups) else ""
        _legend(made, groups, f"{seeds}dotted, ringed: Pareto front")
    return made


def classes(groups: Sequence[Group]) -> Any:
    """Each class's accuracy, mean over a group's runs; the classes in which the groups differ most come first."""
    shown = [(g, look, share) for g, look in zip(groups, looks(groups), strict=True) if (share := _class_share(g)) is not None]
    names = _class_names([g for g, _, _ in shown])
    if not names:
        return None
    table = 100 * np.stack([share for _, _, share in shown])
    spread = np.nan_to_num(table.max(axis=0) - table.min(axis=0))
    order = np.argsort(-spread, kind="stable")[:MOST_CLASSES]
    with drawing(LIGHT) as figure:
        height = max(1.2, (0.19 if len(order) <= 30 else 0.12) * len(order)) + 0.5
        made = figure(figsize=(COLUMN_IN, height + _legend_in(groups)), layout="constrained")
        axis, places = made.subplots(), np.arange(len(order))
        axis.hlines(places, table.min(axis=0)[order], table.max(axis=0)[order], color=LIGHT.grid, linewidth=2.2, zorder=1)
        for (_, look, _), share in zip(shown, table, strict=True):
            axis.plot(share[order], places, MATPLOTLIB_MARKERS[look.marker], color=look.light, markersize=4, zorder=2)
        size = {} if len(order) <= 30 else {"fontsize": 5.6}
        axis.set_yticks(places, shortened([names[label] for label in order], 20), parse_math=False, **size)
        axis.set_ylim(len(order) - 0.4, -0.6)
        _furnish(axis, "Right, % of the class", "", grid="x")
        _legend(made, groups)
    return made


def confusion_difference(groups: Sequence[Group]) -> Any:
    """How the confusion matrices of the best two groups differ, in percentage points of the true class."""
    able = sorted((g for g in groups if _class_share(g) is not None), key=lambda g: -np.nan_to_num(g.mean("last")))
    names = _class_names(able[:2])
    if len(able) < 2 or not names:
        return None
    best, other = able[:2]
    change = 100 * (_matrix(best) - _matrix(other))
    count, off = len(names), ~np.eye(len(names), dtype=bool)
    better = np.where(off, -change, change)
    most = max(float(np.abs(better).max()), 1e-9)
    with drawing(LIGHT) as figure:
        made = figure(figsize=(COLUMN_IN, COLUMN_IN + 0.25), layout="constrained")
        axis = made.subplots()
        ends = np.where((better > 0)[..., None], mix(LIGHT.surface, LIGHT.train, np.abs(better) / most),
                        mix(LIGHT.surface, LIGHT.test, np.abs(better) / most))
        axis.pcolormesh(ends, edgecolors=LIGHT.grid, linewidth=0.4 if count <= MOST_NAMED else 0)
        axis.set(xlim=(0, count), ylim=(count, 0), aspect="equal", xlabel="Predicted class", ylabel="True class")
        if count <= 30:
            ticks, size = np.arange(count) + 0.5, {"fontsize": 7 if count <= MOST_NAMED else 5, "parse_math": False}
            axis.set_xticks(ticks, shortened(names, 14), rotation=60, ha="right", rotation_mode="anchor", **size)
            axis.set_yticks(ticks, shortened(names, 14), **size)
        axis.tick_params(length=0)
        for true, predicted in np.argwhere(np.abs(change) >= 0.05) if count <= MOST_NAMED else ():
            pale = np.dot(ends[true, predicted], (0.299, 0.587, 0.114)) > 0.5
            axis.text(predicted + 0.5, true + 0.53, f"{change[true, predicted]:+.1f}".replace("-", "−"), ha="center", va="center",
                      fontsize=5.2, color=LIGHT.ink if pale else LIGHT.surface)
        first, second = shortened([best.label, other.label], 26)
        axis.set_title(f"{first} − {second}, % of the class\nblue: {first} is better", fontsize=8, loc="left", parse_math=False)
    return made


def settings(groups: Sequence[Group]) -> Any:
    """Parallel coordinates: a line for each group, through the settings that differ to its accuracy."""
    names = differing(groups)[:MOST_AXES]
    points = [(g, look) for g, look in zip(groups, looks(groups), strict=True) if math.isfinite(g.mean("last"))]
    if not names or len(points) < 2:
        return None
    scales = [_scale([g.settings.get(name) for g, _ in points]) for name in names]
    scales.append(_scale([round(100 * g.mean("last"), 2) for g, _ in points]))
    titles = ["\n".join(shortened([part], 16)[0] for part in name.rsplit(".", 1)) for name in names]
    with drawing(LIGHT) as figure:
        made = figure(figsize=(COLUMN_IN if len(scales) <= 4 else 7, 2.5 + _legend_in(groups)), layout="constrained")
        axis = made.subplots()
        for at, (group, look) in sorted(enumerate(points), key=lambda p: p[1][0].mean("last")):
            axis.plot([places[at] for places, _ in scales], linewidth=0.7 if by_score(groups) else 1.2, color=look.light,
                      linestyle=MATPLOTLIB_LINES[look.line], marker=MATPLOTLIB_MARKERS[look.marker], markersize=3, clip_on=False)
        for x, (_, ticks) in enumerate(scales):
            axis.axvline(x, color=LIGHT.muted, linewidth=0.6, zorder=0)
            last = x == len(scales) - 1
            for place, word in ticks:
                axis.annotate(word, (x, place), xytext=(4 if last else -4, 0), textcoords="offset points", fontsize=6.5, va="center",
                              ha="left" if last else "right", color=LIGHT.ink, parse_math=False, annotation_clip=False,
                              bbox={"facecolor": LIGHT.surface, "edgecolor": "none", "pad": 0.6, "alpha": 0.85})
        axis.set_xticks(range(len(scales)), [*titles, "Test\naccuracy (%)"], parse_math=False)
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.set(xlim=(-0.45, len(scales) - 0.55), ylim=(-0.04, 1.04), yticks=[])
        axis.spines[:].set_visible(False)
        _legend(made, groups, line=True)
    return made


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no cheaper point equals, from the cheapest: (cost, worth) with both rising."""
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def band(group: Group, measure: str) -> np.ndarray:
    """float64 [epochs measured, 4]: epoch, mean over the runs that got there, standard deviation (0 of one), runs."""
    found: dict[float, list[float]] = {}
    for run in group.counted:
        for epoch, value in zip(run.series["epoch"], run.measure(measure), strict=True):
            if math.isfinite(value):
                found.setdefault(float(epoch), []).append(float(value))
    rows = [(epoch, float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else 0.0, len(v)) for epoch, v in found.items()]
    return np.array(sorted(rows), np.float64).reshape(-1, 4)


def _line(axis: Any, group: Group, look: Look, measure: str, factor: float, *, many: bool) -> None:
    epochs, middle, spread, runs = band(group, measure).T
    middle, spread = factor * middle, factor * spread
    if (runs > 1).any():
        axis.fill_between(epochs, middle - spread, middle + spread, color=look.light, alpha=0.18, linewidth=0)
    often = max(1, len(epochs) // 7)
    marker = None if many and len(epochs) > 1 else MATPLOTLIB_MARKERS[look.marker]
    axis.plot(epochs, middle, color=look.light, linestyle=MATPLOTLIB_LINES[look.line], linewidth=0.6 if many else 1.1, marker=marker,
              markersize=3.2, markevery=(sum(map(ord, look.marker)) % often, often))


def _furnish(axis: Any, x: str, y: str, grid: str = "both") -> None:
    axis.set(xlabel=x, ylabel=y)
    axis.grid(axis=grid, color=LIGHT.grid, linewidth=0.5)
    axis.set_axisbelow(True)


def _legend_in(groups: Sequence[Group]) -> float:
    """Inches that the legend takes below a figure."""
    return 0.55 if by_score(groups) else 0.35 + 0.16 * math.ceil(len(groups) / _columns(groups))


def _columns(groups: Sequence[Group]) -> int:
    longest = max(min(LONGEST, len(group.label)) for group in groups)
    return next(count for most, count in ((8, 3), (17, 2), (LONGEST, 1)) if longest <= most)


def _legend(made: Any, groups: Sequence[Group], about: str = "", *, line: bool = False) -> None:
    """Below everything: which look is whose; or, for more than can be told apart, what the colours mean."""
    from matplotlib.lines import Line2D

    if by_score(groups):
        ends = [Line2D([], [], color=c, linestyle="none", marker="s", markersize=6) for c in RAMP_LIGHT[::-1]]
        words = ["best", *[""] * (len(ends) - 2), "worst of the groups"]
        made.legend(ends, words, loc="outside lower left", ncols=len(ends), frameon=False, columnspacing=-0.2, handletextpad=0.3,
                    title=about or None, title_fontsize=7, alignment="left")
        return
    own = [Line2D([], [], color=look.light, marker=MATPLOTLIB_MARKERS[look.marker], markersize=4, linewidth=1.1,
                  linestyle=MATPLOTLIB_LINES[look.line] if line else "none") for look in looks(groups)]
    legend = made.legend(own, shortened([group.label for group in groups], LONGEST), loc="outside lower left",
                         ncols=_columns(groups), frameon=False, handlelength=2.6 if line else 1.2, columnspacing=1.2,
                         title=about or None, title_fontsize=7, alignment="left", fontsize=7.5)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _share(run: History) -> np.ndarray | None:
    matrix = run.confusion()
    return None if matrix is None else matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def _matrix(group: Group) -> np.ndarray:
    """Mean over the group's runs that have one, float64 [classes, classes], shares of the true class."""
    return np.mean([share for run in group.counted if (share := _share(run)) is not None], axis=0)  # type: ignore[no-any-return]


def _class_share(group: Group) -> np.ndarray | None:
    """Each class's part of right answers, or None where no run was evaluated to the end, or they differ in classes."""
    shares = [share for run in group.counted if (share := _share(run)) is not None]
    alike = len({share.shape for share in shares}) == 1
    return np.mean([np.diag(share) for share in shares], axis=0) if alike else None


def _class_names(groups: Sequence[Group]) -> list[str]:
    """The classes' names, if all groups have the same."""
    seen = {run.classes for group in groups for run in group.counted if run.confusion() is not None}
    return list(seen.pop()) if len(seen) == 1 else []


def _scale(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Each value's place from 0 to 1, and ticks as (place, word). Numbers over a factor of ten have a log scale."""
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    if not numbers:
        words = sorted({written(v) for v in values})
        place = {word: at / (len(words) - 1) if len(words) > 1 else 0.5 for at, word in enumerate(words)}
        return [place[written(v)] for v in values], [(place[word], shortened([word], 14)[0]) for word in words]
    log = min(values) > 0 and max(values) / min(values) >= 10
    by = np.log10 if log else np.asarray
    low, high = float(by(min(values))), float(by(max(values)))

    def place_of(value: float) -> float:
        return (float(by(value)) - low) / (high - low) if high > low else 0.5

    distinct = sorted(set(values))
    apart = all(place_of(b) - place_of(a) > 0.07 for a, b in zip(distinct, distinct[1:], strict=False))
    if not apart or len(distinct) > 10:
        even = np.linspace(low, high, 5)
        distinct = [float(v) for v in (10**even if log else even)]
    return [place_of(v) for v in values], [(place_of(v), f"{v:.4g}" if apart else f"{v:.3g}") for v in distinct]


FIGURES: dict[str, Callable[[Sequence[Group]], Any]] = {
    "curves": curves, "cost": cost, "classes": classes, "confusion_difference": confusion_difference, "settings": settings}
