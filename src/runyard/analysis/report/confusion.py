"""Figure 2: the confusion matrix over the test set, with its counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runyard.analysis.report.theme import Theme, blend, figure_factory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Number of classes up to which it holds, side of a cell in inches, font size of counts and of names in points.
SIZES = ((12, 0.40, 7.5, 8.0), (30, 0.27, 6.0, 7.0), (120, 0.115, 3.4, 5.6))
MIN_SIDE_IN, MAX_SIDE_IN = 2.6, 14.0
MAX_CLASS_NAME = 24


def draw_confusion(confusion: np.ndarray, classes: list[str], theme: Theme) -> Figure:
    """Draw a confusion matrix, int [classes, classes], rows by true class, as a matplotlib ``Figure``.

    Blue is correct, vermillion mistaken; the shade is the fraction of the true class. Mistakes have a separate scale,
    because the diagonal would hide them. Counts other than 0 are written for up to 120 classes.
    """
    count = len(confusion)
    cell, count_pt, name_pt = next((size[1:] for size in SIZES if count <= size[0]), (MAX_SIDE_IN / count, 0.0, 0.0))
    names = [name if len(name) <= MAX_CLASS_NAME else name[: MAX_CLASS_NAME - 1] + "…" for name in classes]
    slanted = count <= SIZES[0][0]
    margin = max(0.56 * name_pt * max(map(len, names)), 18) / 72  # width of the longest name, in
    left, below = margin + 0.35, margin * (0.72 if slanted else 1) + 0.92
    side = max(cell * count, MIN_SIDE_IN)
    width, height = left + side + 0.12, below + side + 0.08

    fraction = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    worst = max(float(np.max(fraction * (1 - np.eye(count)))), 1e-9)
    colors = _cell_colors(fraction, worst, theme)
    with figure_factory(theme) as new_figure:
        figure = new_figure(figsize=(width, height))
        axis = figure.add_axes((left / width, below / height, side / width, side / height))
        axis.pcolormesh(colors, edgecolors=theme.background, linewidth=0.6 if slanted else 0.15)
        axis.set(xlim=(0, count), ylim=(count, 0))
        axis.tick_params(length=0, pad=2)
        for edge in axis.spines.values():
            edge.set(visible=True, color=theme.muted, linewidth=0.5)
        _label_axes(axis, names, name_pt, slanted)
        if count_pt:
            _write_counts(axis, confusion, colors, theme, count_pt, zeros=slanted)
        middle = {"ha": "center", "va": "center", "color": theme.muted}
        figure.text((left + side / 2) / width, 0.70 / height, "Predicted class", middle)
        figure.text(0.12 / width, (below + side / 2) / height, "True class", middle, rotation=90)
        _color_keys(figure, theme, worst, left, side, width, height)
    return figure


def _cell_colors(fraction: np.ndarray, worst: float, theme: Theme) -> np.ndarray:
    right = blend(theme.background, theme.train, fraction)
    wrong = blend(theme.background, theme.test, np.minimum(fraction / worst, 1))
    return np.where(np.eye(len(fraction), dtype=bool)[..., None], right, wrong)


def _label_axes(axis: Axes, names: list[str], name_pt: float, slanted: bool) -> None:
    if not name_pt:  # too many classes for names: show label numbers
        step = next(s for s in (50, 100, 200, 500, 1000, 5000) if len(names) / s <= 10)
        labels = list(range(0, len(names), step))
        axis.set_xticks([label + 0.5 for label in labels], list(map(str, labels)))
        axis.set_yticks([label + 0.5 for label in labels], list(map(str, labels)))
        return
    positions = np.arange(len(names)) + 0.5
    turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {"rotation": 90}
    axis.set_xticks(positions, names, fontsize=name_pt, parse_math=False, **turn)
    axis.set_yticks(positions, names, fontsize=name_pt, parse_math=False)
    for label in (*axis.get_xticklabels(), *axis.get_yticklabels()):
        label.set_color(axis.xaxis.label.get_color())


def _write_counts(
    axis: Axes, confusion: np.ndarray, colors: np.ndarray, theme: Theme, size_pt: float, *, zeros: bool
) -> None:
    dark = colors @ (0.299, 0.587, 0.114) < 0.5
    for true, predicted in np.argwhere((confusion > 0) | zeros):
        value = int(confusion[true, predicted])
        shade = "#ffffff" if dark[true, predicted] else "#14171a"
        axis.text(
            predicted + 0.5,
            true + 0.53,
            str(value),
            ha="center",
            va="center",
            fontsize=size_pt,
            color=shade if value else theme.muted,
        )


def _color_keys(
    figure: Figure, theme: Theme, worst: float, left: float, side: float, width: float, height: float
) -> None:
    """Draw two color keys along the bottom: the scale of correct and of mistaken cells."""
    ramp = np.linspace(0, 1, 64)[None]
    key_width = min(1.6, side * 0.46)
    keys = ((left, theme.train, "correct", 1.0), (left + side - key_width, theme.test, "mistaken", worst))
    for start, color, label, maximum in keys:
        axis = figure.add_axes((start / width, 0.40 / height, key_width / width, 0.08 / height))
        axis.imshow(blend(theme.background, color, ramp), aspect="auto", extent=(0, 1, 0, 1))
        axis.set_axis_off()
        text_style = {"transform": axis.transAxes, "va": "top", "fontsize": 7.5, "color": theme.muted}
        axis.text(0, -0.6, "0", text_style, ha="left")
        axis.text(1, -0.6, f"{100 * maximum:.3g} %", text_style, ha="right")
        axis.text(0.5, -2.1, f"{label}, of its class", text_style, ha="center")
