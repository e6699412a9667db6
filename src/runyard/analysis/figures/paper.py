"""Width, axes and legend that all figures for a paper share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from runyard.analysis.compare.groups import Group
from runyard.analysis.compare.text import shorten
from runyard.analysis.figures.group_style import (
    MATPLOTLIB_LINES,
    MATPLOTLIB_MARKERS,
    RAMP_LIGHT,
    colored_by_score,
    group_styles,
)
from runyard.analysis.report.theme import LIGHT

COLUMN_IN = 3.5  # width of one column of a two-column paper
MAX_LEGEND_NAME = 30  # characters of a name in a legend


def style_axis(axis: Axes, x: str, y: str, grid: Literal["both", "x"] = "both") -> None:
    axis.set(xlabel=x, ylabel=y)
    axis.grid(axis=grid, color=LIGHT.grid, linewidth=0.5)
    axis.set_axisbelow(True)


def legend_height_in(groups: Sequence[Group]) -> float:
    """Return the height of the legend below a figure, in inches."""
    return 0.55 if colored_by_score(groups) else 0.35 + 0.16 * math.ceil(len(groups) / _columns(groups))


def _columns(groups: Sequence[Group]) -> int:
    longest = max(min(MAX_LEGEND_NAME, len(group.label)) for group in groups)
    return next(count for max_length, count in ((8, 3), (17, 2), (MAX_LEGEND_NAME, 1)) if longest <= max_length)


def legend(
    figure: Figure, groups: Sequence[Group], drawn: Sequence[Group], title: str = "", *, line: bool = False
) -> None:
    """Lay the figure out with a legend below it: the style of each drawn group, or of too many the colors' meaning."""
    figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.05)
    if colored_by_score(groups):
        swatches = [Line2D([], [], color=c, linestyle="none", marker="s", markersize=6) for c in RAMP_LIGHT[::-1]]
        labels = ["best", *[""] * (len(swatches) - 2), "worst of the groups"]
        figure.legend(
            swatches,
            labels,
            loc="outside lower left",
            ncols=len(swatches),
            frameon=False,
            columnspacing=-0.2,
            handletextpad=0.3,
            title=title or None,
            title_fontsize=7,
            alignment="left",
        )
        return
    handles = [
        Line2D(
            [],
            [],
            color=style.light,
            marker=MATPLOTLIB_MARKERS[style.marker],
            markersize=4,
            linewidth=1.1,
            linestyle=MATPLOTLIB_LINES[style.line] if line else "none",
        )
        for group, style in zip(groups, group_styles(groups), strict=True)
        if group in drawn
    ]
    figure_legend = figure.legend(
        handles,
        shorten([group.label for group in drawn], MAX_LEGEND_NAME),
        loc="outside lower left",
        ncols=_columns(groups),
        frameon=False,
        handlelength=2.6 if line else 1.2,
        columnspacing=1.2,
        title=title or None,
        title_fontsize=7,
        alignment="left",
        fontsize=7.5,
    )
    for text in figure_legend.get_texts():
        text.set_parse_math(False)
