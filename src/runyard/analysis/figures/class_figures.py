"""Figures for a paper by class: the groups' accuracy on each class, and the confusion matrices of the best two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from runyard.analysis.compare.groups import Group
from runyard.analysis.compare.text import shorten
from runyard.analysis.figures.group_style import MATPLOTLIB_MARKERS, group_styles
from runyard.analysis.figures.paper import COLUMN_IN, legend, legend_height_in, style_axis
from runyard.analysis.report.theme import LIGHT, blend, figure_factory
from runyard.runs.results.history import RunHistory

MAX_LABELED_CLASSES = 12  # up to so many classes, numbers are written into the cells
MAX_FIGURE_CLASSES = 40  # so many rows fit a page


def per_class_accuracy(groups: Sequence[Group]) -> Figure | None:
    """Draw each class's accuracy, the mean over a group's runs; classes in which the groups differ most come first."""
    eligible = [
        (g, style, accuracy)
        for g, style in zip(groups, group_styles(groups), strict=True)
        if (accuracy := _class_share(g)) is not None
    ]
    names, same_classes = _same_classes([g for g, _, _ in eligible])
    drawn = [entry for entry in eligible if entry[0] in same_classes]
    if not names:
        return None
    table = 100 * np.stack([accuracy for _, _, accuracy in drawn])
    spread = np.nan_to_num(table.max(axis=0) - table.min(axis=0))
    order = np.argsort(-spread, kind="stable")[:MAX_FIGURE_CLASSES]
    with figure_factory(LIGHT) as new_figure:
        height = max(1.2, (0.19 if len(order) <= 30 else 0.12) * len(order)) + 0.5
        figure = new_figure(figsize=(COLUMN_IN, height + legend_height_in(groups)))
        axis, positions = figure.subplots(), np.arange(len(order))
        axis.hlines(
            positions, table.min(axis=0)[order], table.max(axis=0)[order], color=LIGHT.grid, linewidth=2.2, zorder=1
        )
        for (_, style, _), accuracy in zip(drawn, table, strict=True):
            axis.plot(
                accuracy[order], positions, MATPLOTLIB_MARKERS[style.marker], color=style.light, markersize=4, zorder=2
            )
        axis.set_yticks(positions, shorten([names[label] for label in order], 20), parse_math=False)
        if len(order) > 30:
            axis.tick_params(axis="y", labelsize=5.6)
        axis.set_ylim(len(order) - 0.4, -0.6)
        title_note = f"\nthe {len(order)} of {len(names)} that differ most" if len(order) < len(names) else ""
        title_note += "" if len(drawn) == len(eligible) else f"\nof {drawn[0][0].runs[0].data_name} alone"
        style_axis(axis, f"Right, % of the class{title_note}", "", grid="x")
        legend(figure, groups, [group for group, *_ in drawn])
    return figure


def confusions(groups: Sequence[Group]) -> Figure | None:
    """Draw the confusion matrices of the best two groups, or of the only one, in % of the true class."""
    names, ranked = _sort_by_accuracy(groups)
    if not ranked or not names:
        return None
    matrices = [100 * _matrix(group) for group in ranked[:2]]
    off = ~np.eye(len(names), dtype=bool)
    worst = max(*(float(matrix[off].max(initial=0.0)) for matrix in matrices), 1e-9)
    with figure_factory(LIGHT) as new_figure:
        figure = new_figure(figsize=(COLUMN_IN * len(matrices), COLUMN_IN + 0.25))
        figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.05)
        for axis, group, matrix in zip(
            figure.subplots(1, len(matrices), squeeze=False)[0], ranked, matrices, strict=False
        ):
            right, wrong = (blend(LIGHT.background, c, np.clip(matrix / maximum, 0, 1))
                            for c, maximum in ((LIGHT.train, 100), (LIGHT.test, worst)))  # fmt: skip
            written = [(t, p, f"{matrix[t, p]:.1f}") for t, p in np.argwhere(matrix >= 0.05)]
            title = shorten([group.label], 30)[0]
            _draw(axis, names, np.where(off[..., None], wrong, right), written, f"{title}, % of the class")
    return figure


def confusion_difference(groups: Sequence[Group]) -> Figure | None:
    """Draw the difference of the best two groups' confusion matrices, in percentage points of the true class."""
    names, ranked = _sort_by_accuracy(groups)
    if len(ranked) < 2 or not names:
        return None
    best, other = ranked[:2]
    change = 100 * (_matrix(best) - _matrix(other))
    better = np.where(~np.eye(len(names), dtype=bool), -change, change)
    maximum = max(float(np.abs(better).max()), 1e-9)
    colors = np.where(
        (better > 0)[..., None],
        blend(LIGHT.background, LIGHT.train, np.abs(better) / maximum),
        blend(LIGHT.background, LIGHT.test, np.abs(better) / maximum),
    )
    labeled = np.argwhere(np.abs(change) >= 0.05)
    labels = [(t, p, f"{change[t, p]:+.1f}".replace("-", "\N{MINUS SIGN}")) for t, p in labeled]
    first, second = shorten([best.label, other.label], 18)
    with figure_factory(LIGHT) as new_figure:
        figure = new_figure(figsize=(COLUMN_IN, COLUMN_IN + 0.25))
        figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.05)
        title = f"{first} \N{MINUS SIGN} {second}\n% of the class; blue: the first is better"
        _draw(figure.subplots(), names, colors, labels, title)
    return figure


def _draw(axis: Axes, names: Sequence[str], colors: np.ndarray, labels: list[tuple[int, int, str]], title: str) -> None:
    """Draw cells in ``colors``, float [classes, classes, 3], and the labels in them if there is room."""
    count = len(names)
    axis.pcolormesh(colors, edgecolors=LIGHT.grid, linewidth=0.4 if count <= MAX_LABELED_CLASSES else 0)
    axis.set(xlim=(0, count), ylim=(count, 0), aspect="equal", xlabel="Predicted class", ylabel="True class")
    if count <= 30:
        ticks, texts, size_pt = np.arange(count) + 0.5, shorten(names, 14), 7 if count <= MAX_LABELED_CLASSES else 5
        axis.set_xticks(
            ticks, texts, fontsize=size_pt, parse_math=False, rotation=60, ha="right", rotation_mode="anchor"
        )
        axis.set_yticks(ticks, texts, fontsize=size_pt, parse_math=False)
    axis.tick_params(length=0)
    for true, predicted, label in labels if count <= MAX_LABELED_CLASSES else ():
        pale = np.dot(colors[true, predicted], (0.299, 0.587, 0.114)) > 0.5
        centered = {"ha": "center", "va": "center", "fontsize": 5.2}
        axis.text(predicted + 0.5, true + 0.53, label, centered, color=LIGHT.foreground if pale else LIGHT.background)
    axis.set_title(title, fontsize=8, loc="left", parse_math=False)


def _share(run: RunHistory) -> np.ndarray | None:
    matrix = run.confusion()
    return None if matrix is None else matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def _matrix(group: Group) -> np.ndarray:
    """Return the mean of the runs' confusion matrices, float64 [classes, classes], fractions of the true class."""
    return np.mean([fractions for run in group.counted_runs if (fractions := _share(run)) is not None], axis=0)  # type: ignore[no-any-return]


def _class_share(group: Group) -> np.ndarray | None:
    """Return each class's accuracy, float64 [classes]; None without a final evaluation or with unequal classes."""
    matrices = [matrix for run in group.counted_runs if (matrix := _share(run)) is not None]
    same_shape = len({matrix.shape for matrix in matrices}) == 1
    return np.mean([np.diag(matrix) for matrix in matrices], axis=0) if same_shape else None


def _sort_by_accuracy(groups: Sequence[Group]) -> tuple[list[str], list[Group]]:
    names, eligible = _same_classes([g for g in groups if _class_share(g) is not None])
    return names, sorted(eligible, key=lambda g: -np.nan_to_num(g.mean("last")))


def _same_classes(groups: Sequence[Group]) -> tuple[list[str], list[Group]]:
    """Return the class names that most groups have, and these groups: different classes do not fit one figure."""
    named = [
        next(run.classes_of(matrix) for run in group.counted_runs if (matrix := run.confusion()) is not None)
        for group in groups
    ]
    common = max(named, key=named.count, default=())
    return list(common), [group for group, names in zip(groups, named, strict=True) if names == common]
