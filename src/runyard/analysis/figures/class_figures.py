"""Figures for a paper by class: how accurate the groups are on each, and how the best two differ in their mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runyard.analysis.compare.groups import Group
from runyard.analysis.compare.text import shortened
from runyard.analysis.figures.group_style import MATPLOTLIB_MARKERS, looks
from runyard.analysis.figures.paper import COLUMN_IN, furnish, legend, legend_in
from runyard.analysis.report.theme import LIGHT, drawing, mix
from runyard.runs.history import History

MOST_NAMED = 12  # classes whose differences are written in their cells
MOST_CLASSES = 40  # of a page's height


def classes(groups: Sequence[Group]) -> Any:
    """Each class's accuracy, mean over a group's runs; the classes in which the groups differ most come first."""
    able = [
        (g, look, share)
        for g, look in zip(groups, looks(groups), strict=True)
        if (share := _class_share(g)) is not None
    ]
    names, alike = _alike([g for g, _, _ in able])
    shown = [each for each in able if each[0] in alike]
    if not names:
        return None
    table = 100 * np.stack([share for _, _, share in shown])
    spread = np.nan_to_num(table.max(axis=0) - table.min(axis=0))
    order = np.argsort(-spread, kind="stable")[:MOST_CLASSES]
    with drawing(LIGHT) as figure:
        height = max(1.2, (0.19 if len(order) <= 30 else 0.12) * len(order)) + 0.5
        made = figure(figsize=(COLUMN_IN, height + legend_in(groups)), layout="constrained")
        axis, places = made.subplots(), np.arange(len(order))
        axis.hlines(
            places, table.min(axis=0)[order], table.max(axis=0)[order], color=LIGHT.grid, linewidth=2.2, zorder=1
        )
        for (_, look, _), share in zip(shown, table, strict=True):
            axis.plot(share[order], places, MATPLOTLIB_MARKERS[look.marker], color=look.light, markersize=4, zorder=2)
        size = {} if len(order) <= 30 else {"fontsize": 5.6}
        axis.set_yticks(places, shortened([names[label] for label in order], 20), parse_math=False, **size)
        axis.set_ylim(len(order) - 0.4, -0.6)
        some = f"\nthe {len(order)} of {len(names)} that differ most" if len(order) < len(names) else ""
        some += "" if len(shown) == len(able) else f"\nof {shown[0][0].runs[0].data_name} alone"
        furnish(axis, f"Right, % of the class{some}", "", grid="x")
        legend(made, groups, [group for group, *_ in shown])
    return made


def confusions(groups: Sequence[Group]) -> Any:
    """The confusion matrices of the best two groups side by side, or of the one there is, in % of the true class."""
    names, able = _best_first(groups)
    if not able or not names:
        return None
    matrices = [100 * _matrix(group) for group in able[:2]]
    off = ~np.eye(len(names), dtype=bool)
    worst = max(*(float(matrix[off].max(initial=0.0)) for matrix in matrices), 1e-9)
    with drawing(LIGHT) as figure:
        made = figure(figsize=(COLUMN_IN * len(matrices), COLUMN_IN + 0.25), layout="constrained")
        made.get_layout_engine().set(h_pad=0.06, w_pad=0.05)
        for axis, group, matrix in zip(made.subplots(1, len(matrices), squeeze=False)[0], able, matrices, strict=False):
            right, wrong = (mix(LIGHT.surface, c, np.clip(matrix / most, 0, 1))
                            for c, most in ((LIGHT.train, 100), (LIGHT.test, worst)))  # fmt: skip
            written = [(t, p, f"{matrix[t, p]:.1f}") for t, p in np.argwhere(matrix >= 0.05)]
            title = shortened([group.label], 30)[0]
            _draw(axis, names, np.where(off[..., None], wrong, right), written, f"{title}, % of the class")
    return made


def confusion_difference(groups: Sequence[Group]) -> Any:
    """How the confusion matrices of the best two groups differ, in percentage points of the true class."""
    names, able = _best_first(groups)
    if len(able) < 2 or not names:
        return None
    best, other = able[:2]
    change = 100 * (_matrix(best) - _matrix(other))
    better = np.where(~np.eye(len(names), dtype=bool), -change, change)
    most = max(float(np.abs(better).max()), 1e-9)
    ends = np.where(
        (better > 0)[..., None],
        mix(LIGHT.surface, LIGHT.train, np.abs(better) / most),
        mix(LIGHT.surface, LIGHT.test, np.abs(better) / most),
    )
    told = np.argwhere(np.abs(change) >= 0.05)
    words = [(t, p, f"{change[t, p]:+.1f}".replace("-", "\N{MINUS SIGN}")) for t, p in told]
    first, second = shortened([best.label, other.label], 18)
    with drawing(LIGHT) as figure:
        made = figure(figsize=(COLUMN_IN, COLUMN_IN + 0.25), layout="constrained")
        made.get_layout_engine().set(h_pad=0.06, w_pad=0.05)
        title = f"{first} \N{MINUS SIGN} {second}\n% of the class; blue: the first is better"
        _draw(made.subplots(), names, ends, words, title)
    return made


def _draw(axis: Any, names: Sequence[str], colours: np.ndarray, words: list[tuple[int, int, str]], title: str) -> None:
    """A matrix of cells in these ``colours`` [classes, classes, 3]; the words in them where they can be read."""
    count = len(names)
    axis.pcolormesh(colours, edgecolors=LIGHT.grid, linewidth=0.4 if count <= MOST_NAMED else 0)
    axis.set(xlim=(0, count), ylim=(count, 0), aspect="equal", xlabel="Predicted class", ylabel="True class")
    if count <= 30:
        ticks, size = np.arange(count) + 0.5, {"fontsize": 7 if count <= MOST_NAMED else 5, "parse_math": False}
        axis.set_xticks(ticks, shortened(names, 14), rotation=60, ha="right", rotation_mode="anchor", **size)
        axis.set_yticks(ticks, shortened(names, 14), **size)
    axis.tick_params(length=0)
    for true, predicted, word in words if count <= MOST_NAMED else ():
        pale = np.dot(colours[true, predicted], (0.299, 0.587, 0.114)) > 0.5
        centred = {"ha": "center", "va": "center", "fontsize": 5.2}
        axis.text(predicted + 0.5, true + 0.53, word, color=LIGHT.ink if pale else LIGHT.surface, **centred)
    axis.set_title(title, fontsize=8, loc="left", parse_math=False)


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


def _best_first(groups: Sequence[Group]) -> tuple[list[str], list[Group]]:
    names, able = _alike([g for g in groups if _class_share(g) is not None])
    return names, sorted(able, key=lambda g: -np.nan_to_num(g.mean("last")))


def _alike(groups: Sequence[Group]) -> tuple[list[str], list[Group]]:
    """The classes' names that most groups have, and those groups: of different classes there is no one picture."""
    named = [
        next(run.classes_of(matrix) for run in group.counted if (matrix := run.confusion()) is not None)
        for group in groups
    ]
    most = max(named, key=named.count, default=())
    return list(most), [group for group, names in zip(groups, named, strict=True) if names == most]
