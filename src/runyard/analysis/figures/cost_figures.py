"""Figures for a paper of accuracy against cost, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from runyard.analysis.compare.groups import Group
from runyard.analysis.figures.group_style import MATPLOTLIB_MARKERS, group_styles
from runyard.analysis.figures.paper import COLUMN_IN, legend, legend_height_in, style_axis
from runyard.analysis.report.theme import LIGHT, figure_factory


def accuracy_vs_cost(groups: Sequence[Group]) -> Figure | None:
    """Draw test accuracy against GPU-hours, or core-hours if no run had a GPU, with the Pareto front."""
    name, title = cost_metric(groups)
    points = [
        (g, style, g.mean(name), 100 * g.mean("last")) for g, style in zip(groups, group_styles(groups), strict=True)
    ]
    points = [point for point in points if point[2] > 0 and math.isfinite(point[3])]
    if len(points) < 2:
        return None
    with figure_factory(LIGHT) as new_figure:
        figure = new_figure(figsize=(COLUMN_IN, 2.5 + legend_height_in(groups)))
        axis = figure.subplots()
        front = pareto([(x, y) for group, _, x, y in points if group.finished])
        xs, ys = [x for x, _ in front], [y for _, y in front]
        axis.step(xs, ys, where="post", color=LIGHT.muted, linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=1)
        for group, style, x, y in points:
            marker, color = MATPLOTLIB_MARKERS[style.marker], style.light
            if group.seed_count > 1:
                costs, accuracies = group.values(name), 100 * group.values("last")
                axis.plot(costs, accuracies, marker, color=color, markersize=2.6, alpha=0.55, zorder=2)
            edge = LIGHT.foreground if group.finished and (x, y) in front else "none" if group.finished else color
            fill = color if group.finished else "none"
            axis.plot([x], [y], marker, color=color, markersize=6, mfc=fill, mec=edge, mew=0.9, zorder=3)
        hours = [x for _, _, x, _ in points]
        if max(hours) > 8 * min(hours):
            axis.set_xscale("log")
            ticks = _ticks(min(hours), max(hours))
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.set_xticks([], minor=True)
        else:
            axis.locator_params(axis="x", nbins=6)
        style_axis(axis, title, "Test accuracy, last epoch (%)")
        seeds = "small: single seeds; " if any(group.seed_count > 1 for group in groups) else ""
        hollow = "" if all(group.finished for group, *_ in points) else "; hollow: not finished"
        legend(figure, groups, [group for group, *_ in points], f"{seeds}dotted, ringed: Pareto front{hollow}")
    return figure


def cost_metric(groups: Sequence[Group]) -> tuple[str, str]:
    """Return the metric of cost and its axis title: GPU-hours, or core-hours if no run had a GPU."""
    gpus = any(group.mean("gpu_hours") > 0 for group in groups)
    return ("gpu_hours", "GPU-hours") if gpus else ("core_hours", "Core-hours")


def _ticks(low: float, high: float) -> list[float]:
    """Return the ticks of a log axis: 1, 2, 5, 10, ...; over more than three powers of ten only the powers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1,) if len(powers) > 4 else (1, 2, 5)
    return [tick for p in powers for d in digits if low / 1.2 <= (tick := d * 10.0**p) <= high * 1.2]


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto front, cheapest first: the (cost, accuracy) points that no cheaper point equals."""
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front
