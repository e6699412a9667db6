"""Writes the figures of a comparison for a paper: one column wide, readable in print and for the color-blind.

Groups differ by color, line and marker, as on the page. Every figure is written as .png (300 dpi), .pdf and .svg.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from runyard.analysis.compare.groups import Group, differing_settings, format_setting
from runyard.analysis.compare.text import shorten
from runyard.analysis.figures.class_figures import confusion_difference, confusions, per_class_accuracy
from runyard.analysis.figures.cost_figures import accuracy_vs_cost, cost_metric
from runyard.analysis.figures.group_style import (
    MATPLOTLIB_LINES,
    MATPLOTLIB_MARKERS,
    GroupStyle,
    colored_by_score,
    group_styles,
)
from runyard.analysis.figures.paper import COLUMN_IN, legend, legend_height_in, style_axis
from runyard.analysis.report.theme import LIGHT, figure_factory, save
from runyard.errors import UserError
from runyard.files import write_atomic
from runyard.runs.results.metrics import METRICS_BY_NAME, Metric

FIGURE_FORMATS = ("png", "pdf", "svg")
DPI = 300
MAX_AXES = 6
RESTART_GID = "restarts"
CURVE_PANELS = (METRICS_BY_NAME["test_top1"], METRICS_BY_NAME["test_loss"])


def write_figures(folder: Path, groups: Sequence[Group]) -> list[str]:
    """Write every figure for which the runs have data into ``folder``, which is created. Returns the figures' names.

    Raises:
        UserError: the folder cannot be written, or its name ends like an image file's.
    """
    if folder.suffix.lower().lstrip(".") in FIGURE_FORMATS:
        raise UserError(
            f"--png {folder}: expected a folder, since each figure is a file of its own",
            f"try --png {folder.with_suffix('')}",
        )
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in FIGURES.items():
            figure = draw(groups)
            if figure is not None:
                for kind in FIGURE_FORMATS:
                    write_atomic(folder / f"{name}.{kind}", save(figure, kind, DPI))
                written.append(name)
    except OSError as error:
        raise UserError(
            f"--png {folder}: cannot write there ({error.strerror})", "name a folder you can write"
        ) from error
    return written


def curves(groups: Sequence[Group]) -> Figure | None:
    """Draw test accuracy and loss by epoch: means over seeds, with a band of one standard deviation."""
    return _curves(groups, "epoch", "Epoch")


def curves_by_cost(groups: Sequence[Group]) -> Figure | None:
    """Draw test accuracy and loss by GPU-hours or core-hours, with a marker where a run resumed."""
    return _curves(groups, *cost_metric(groups))


def _curves(groups: Sequence[Group], x_metric: str, x_title: str) -> Figure | None:
    eligible = [g for g in groups if x_metric == "epoch" or g.mean(x_metric) > 0]
    panels = [
        panel
        for panel in CURVE_PANELS
        if any(np.isfinite(run.metric(panel.name)).any() for g in eligible for run in g.runs)
    ]
    if not panels:
        return None
    with figure_factory(LIGHT) as new_figure:
        figure = new_figure(figsize=(COLUMN_IN, 1.95 * len(panels) + legend_height_in(groups)))
        for axis, metric in zip(figure.subplots(len(panels), 1, squeeze=False).ravel(), panels, strict=True):
            for group, style in zip(groups, group_styles(groups), strict=True):
                if group in eligible:
                    _line(axis, group, style, metric, x_metric, many=colored_by_score(groups))
            style_axis(axis, "", metric.axis_title)
            if x_metric == "epoch":
                axis.xaxis.get_major_locator().set_params(integer=True)
        figure.axes[-1].set_xlabel(x_title)
        remarks = ["line: mean over seeds; band: ± standard deviation"] * any(
            group.seed_count > 1 for group in eligible
        )
        remarks += ["triangle: resumed after an interruption"] * any(
            a.get_gid() == RESTART_GID for a in figure.axes[0].lines
        )
        drawn = [
            g for g in eligible if any(np.isfinite(run.metric(panel.name)).any() for run in g.runs for panel in panels)
        ]
        legend(figure, groups, drawn, "\n".join(remarks), line=True)
    return figure


def parallel_coordinates(groups: Sequence[Group]) -> Figure | None:
    """Draw parallel coordinates: a line for each group through the settings that differ, to its accuracy."""
    names = differing_settings(groups)[:MAX_AXES]
    points = [
        (g, style) for g, style in zip(groups, group_styles(groups), strict=True) if math.isfinite(g.mean("last"))
    ]
    if not names or len(points) < 2:
        return None
    scales = [_axis_positions([g.settings.get(name) for g, _ in points]) for name in names]
    scales.append(_axis_positions([round(100 * g.mean("last"), 2) for g, _ in points]))
    titles = ["\n".join(shorten([part], 16)[0] for part in name.rsplit(".", 1)) for name in names]
    with figure_factory(LIGHT) as new_figure:
        figure = new_figure(figsize=(COLUMN_IN if len(scales) <= 4 else 7, 2.5 + legend_height_in(groups)))
        axis = figure.subplots()
        for index, (_, style) in sorted(enumerate(points), key=lambda p: p[1][0].mean("last")):
            axis.plot(
                [positions[index] for positions, _ in scales],
                linewidth=0.7 if colored_by_score(groups) else 1.2,
                color=style.light,
                linestyle=MATPLOTLIB_LINES[style.line],
                marker=MATPLOTLIB_MARKERS[style.marker],
                markersize=3,
                clip_on=False,
            )
        for x, (_, ticks) in enumerate(scales):
            axis.axvline(x, color=LIGHT.muted, linewidth=0.6, zorder=0)
            last = x == len(scales) - 1
            for position, label in ticks:
                axis.annotate(
                    label,
                    (x, position),
                    xytext=(4 if last else -4, 0),
                    textcoords="offset points",
                    fontsize=6.5,
                    va="center",
                    ha="left" if last else "right",
                    color=LIGHT.foreground,
                    parse_math=False,
                    annotation_clip=False,
                    bbox={"facecolor": LIGHT.background, "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
                )
        axis.set_xticks(range(len(scales)), [*titles, "Test\naccuracy (%)"], parse_math=False)
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.set(xlim=(-0.45, len(scales) - 0.55), ylim=(-0.04, 1.04), yticks=[])
        axis.spines[:].set_visible(False)
        legend(figure, groups, [group for group, _ in points], line=True)
    return figure


def mean_and_std(group: Group, measure: str, x_metric: str = "epoch") -> np.ndarray:
    """Return the mean curve of a group's counted runs, float64 [measured epochs, 4].

    The columns are the mean of ``x_metric`` (the epoch, or hours), the mean of the measure, its standard deviation (0
    for one run), and the number of runs that reached the epoch.
    """
    by_epoch: dict[float, list[tuple[float, float]]] = {}
    for run in group.counted_runs:
        for epoch, x, value in zip(run.series["epoch"], run.metric(x_metric), run.metric(measure), strict=True):
            if math.isfinite(value) and math.isfinite(x):
                by_epoch.setdefault(float(epoch), []).append((float(x), float(value)))
    rows = []
    for _, points in sorted(by_epoch.items()):
        xs, values = np.array(points).T
        rows.append((xs.mean(), values.mean(), values.std(ddof=1) if len(values) > 1 else 0.0, len(values)))
    return np.array(rows, np.float64).reshape(-1, 4)


def _restarts(group: Group, x_metric: str) -> list[float]:
    """Return the cost of the group's runs at each restart, h."""
    width = {"gpu_hours": "gpus", "core_hours": "cores"}[x_metric]
    spent = [
        [getattr(start, width) * (start.end_time - start.start_time) / 3600 for start in run.starts[:-1]]
        for run in group.counted_runs
    ]
    return [sum(hours[: index + 1]) for hours in spent for index in range(len(hours))]


def _line(axis: Axes, group: Group, style: GroupStyle, metric: Metric, x_metric: str, *, many: bool) -> None:
    if x_metric != "epoch" and (restarts := _restarts(group, x_metric)):
        axis.plot(
            restarts,
            [0.03] * len(restarts),
            "^",
            transform=axis.get_xaxis_transform(),  # y is a fraction of the axis
            color=style.light,
            fillstyle="none",
            markersize=3.6,
            markeredgewidth=0.7,
            gid=RESTART_GID,
        )
    epochs, middle, spread, runs = mean_and_std(group, metric.name, x_metric).T
    middle, spread = metric.factor * middle, metric.factor * spread
    if (runs > 1).any():
        axis.fill_between(epochs, middle - spread, middle + spread, color=style.light, alpha=0.18, linewidth=0)
    interval = max(1, len(epochs) // 7)
    marker = None if many and len(epochs) > 1 else MATPLOTLIB_MARKERS[style.marker]
    axis.plot(
        epochs,
        middle,
        color=style.light,
        linestyle=MATPLOTLIB_LINES[style.line],
        linewidth=0.6 if many else 1.1,
        marker=marker,
        markersize=3.2,
        markevery=(sum(map(ord, style.marker)) % interval, interval),
    )


def _axis_positions(values: Sequence[object]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return each value's position (0 to 1) and ticks as (position, label); logarithmic over a factor of 10."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)]
    if len(numbers) < len(values):
        labels = sorted({format_setting(v) for v in values})
        position = {label: index / (len(labels) - 1) if len(labels) > 1 else 0.5 for index, label in enumerate(labels)}
        return [position[format_setting(v)] for v in values], [
            (position[label], shorten([label], 14)[0]) for label in labels
        ]
    log = min(numbers) > 0 and max(numbers) / min(numbers) >= 10
    scale = np.log10 if log else np.asarray
    low, high = float(scale(min(numbers))), float(scale(max(numbers)))

    def place_of(value: float) -> float:
        return (float(scale(value)) - low) / (high - low) if high > low else 0.5

    distinct = sorted(set(numbers))
    apart = all(place_of(b) - place_of(a) > 0.07 for a, b in pairwise(distinct))
    if not apart or len(distinct) > 10:
        even = np.linspace(low, high, 5)
        distinct = [float(v) for v in (10**even if log else even)]
    return [place_of(v) for v in numbers], [(place_of(v), f"{v:.4g}" if apart else f"{v:.3g}") for v in distinct]


FIGURES: dict[str, Callable[[Sequence[Group]], Figure | None]] = {
    "curves": curves,
    "curves_by_cost": curves_by_cost,
    "cost": accuracy_vs_cost,
    "classes": per_class_accuracy,
    "confusions": confusions,
    "confusion_difference": confusion_difference,
    "settings": parallel_coordinates,
}
