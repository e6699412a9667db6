"""Figure 1: train loss, test loss, test accuracy and learning rate, per epoch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from runyard.analysis.report.theme import Theme, figure_factory
from runyard.runs.results.facts import ReportData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MAX_EPOCHS_WITH_MARKERS = 30  # up to so many epochs each has a marker
MAX_EPOCHS_THICK = 200  # beyond so many epochs the line is thin
LOSSES = ("train_loss", "test_loss", "val_loss")


def draw_curves(report_data: ReportData, theme: Theme, columns: int = 2) -> Figure:
    """Draw four panels as a matplotlib ``Figure``: 7 in wide with two columns (a page), 3.5 in with one (a phone)."""
    rows = 4 // columns
    with figure_factory(theme) as new_figure:
        figure = new_figure(figsize=(3.5 * columns, 1.95 * rows + 0.35))
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.05, wspace=0.02, hspace=0.02)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        losses, accuracy, rate = axes[:2], axes[2], axes[3]
        losses[1].sharey(losses[0])  # losses side by side need the same scale
        _line(losses[0], report_data, "train_loss", theme.train, "{:.4f}")
        _line(losses[1], report_data, "test_loss", theme.test, "{:.4f}", "test")
        _line(accuracy, report_data, "test_top1", theme.test, "{:.2f} %", "test", scale=100)
        if report_data.has_validation:
            _line(losses[1], report_data, "val_loss", theme.validation, "", "validation")
            _line(accuracy, report_data, "val_top1", theme.validation, "", "validation", scale=100)
            for axis, corner in ((losses[1], "upper right"), (accuracy, "lower right")):
                axis.legend(frameon=False, loc=corner, handlelength=1.4, borderpad=0)
        exponent = _exponent(report_data)
        _line(rate, report_data, "lr", theme.foreground, "", scale=10.0**-exponent)
        unit = rf" ($\times\,10^{{{exponent}}}$)" if exponent else ""
        titles = ("Train loss", "Test loss", "Test accuracy (%)", f"Learning rate{unit}")
        for letter, axis, title in zip("abcd", axes, titles, strict=True):
            _style_axis(axis, report_data, theme, f"({letter})  {title}")
        for axis in axes[-columns:]:
            axis.set_xlabel("Epoch")
        _best(accuracy, report_data, theme)
        for axis, keys, scale in ((losses[0], LOSSES, 1), (rate, ("lr",), 10.0**-exponent)):
            highest = max([scale * value for key in keys for value in report_data.series(key)[1]], default=1)
            axis.set_ylim(0, 1.06 * highest or 1)
        if report_data.restart_epochs():
            count_text = f" ({report_data.restarts} times)" if report_data.restarts > 1 else ""
            figure.legend(
                [_mark(axes[0], report_data.restart_epochs()[0], theme)],
                [f"resumed from a checkpoint{count_text}"],
                loc="outside lower right",
                frameon=False,
                labelcolor=theme.muted,
            )
    return figure


def _line(
    axis: Axes, report_data: ReportData, key: str, color: str, label: str, name: str = "", *, scale: float = 1
) -> None:
    """Draw one metric, with its last value written at the end of the line."""
    epochs, values = report_data.series(key)
    values = [value * scale for value in values]
    if not epochs:
        return
    count = len(epochs)
    axis.plot(
        epochs,
        values,
        color=color,
        linewidth=1.3 if count <= MAX_EPOCHS_THICK else 0.7,
        label=name,
        solid_capstyle="round",
        solid_joinstyle="round",
        marker="o" if count <= MAX_EPOCHS_WITH_MARKERS else None,
        markersize=4 if count == 1 else 2.2,
    )
    if label:
        axis.annotate(
            label.format(values[-1]),
            (epochs[-1], values[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=color,
            annotation_clip=False,
        )


def _best(axis: Axes, report_data: ReportData, theme: Theme) -> None:
    """Mark the best epoch with a ring, unless it is the last; the validation split decides if there is one."""
    epochs, values = report_data.series(report_data.selection_metric)
    color = theme.validation if report_data.has_validation else theme.test
    if not values or max(values) == values[-1]:
        return
    index = values.index(max(values))
    axis.plot(epochs[index], 100 * values[index], "o", markersize=5, markerfacecolor="none", color=color)
    side = "right" if epochs[index] > (epochs[0] + epochs[-1]) / 2 else "left"
    axis.annotate(
        f"best {100 * values[index]:.2f} %",
        (epochs[index], 100 * values[index]),
        xytext=(0, 6),
        ha=side,
        textcoords="offset points",
        color=color,
        bbox={"facecolor": theme.background, "edgecolor": "none", "pad": 0.8},
    )
    axis.margins(y=0.16)


def _style_axis(axis: Axes, report_data: ReportData, theme: Theme, title: str) -> None:
    axis.set_title(title, loc="left", color=theme.foreground)
    axis.grid(axis="y", color=theme.grid, linewidth=0.6)
    axis.set_axisbelow(True)
    last = report_data.epochs[-1]["epoch"] if report_data.epochs else report_data.run.config.epochs
    axis.set_xticks(_ticks(last))
    axis.set_xlim(1 - 0.02 * last - (0.4 if last == 1 else 0), last + 0.02 * last + (0.4 if last == 1 else 0))
    for position in report_data.restart_epochs():
        _mark(axis, position, theme)
    if not axis.lines:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", va="center", color=theme.muted)


def _mark(axis: Axes, epoch: float, theme: Theme) -> Line2D:
    return axis.axvline(epoch, color=theme.muted, linewidth=0.7, linestyle=(0, (1, 2)), zorder=0.5)


def _ticks(last: int) -> list[int]:
    """Return at most nine ticks: epoch 1 and multiples of a round number."""
    step = next(s * 10**power for power in range(8) for s in (1, 2, 5) if last / (s * 10**power) <= 8)
    return sorted({1, *range(step, last + 1, step)})


def _exponent(report_data: ReportData) -> int:
    """Return the power of ten to factor out of the learning rate's ticks; 0 if they are short without."""
    peak = max(report_data.series("lr")[1], default=0)
    power = math.floor(math.log10(peak)) if peak > 0 else 0
    return power if not -2 < power < 3 else 0
