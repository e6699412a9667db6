"""Collects the data that the page's script draws: the runs' numbers as JSON-ready values."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from runyard.analysis.compare.groups import Group, differing_settings, format_setting
from runyard.analysis.figures.group_style import GroupStyle, colored_by_score, group_styles
from runyard.runs.results.history import RunHistory, Start
from runyard.runs.results.metrics import METRICS, METRICS_BY_NAME

Values = list[float | None]

CHARTED = [metric for metric in METRICS if metric.of == "run" and metric.charted]
# Horizontal axes: name in the data, label of the button, title of the axis.
X_AXES = (
    ("epoch", "epoch", "Epoch"),
    ("step", "step", "Step"),
    ("wall", "wall time", "Wall time since the start, h"),
    ("training", "training time", "Training time, h"),
    ("gpu", "GPU-hours", "GPU-hours"),
    ("core", "core-hours", "Core-hours"),
)
COORDINATES = {"epoch", "step", "t"}
DIGITS = 7  # significant digits of drawn numbers; tables hold the journal's own
MAX_MISTAKES = 400_000  # confused pairs of classes kept for all runs together: about 1 MB
MAX_PAGE_CLASSES = 200


def page_data(groups: Sequence[Group]) -> dict[str, Any]:
    """Return everything that the page draws, as a JSON-ready mapping."""
    runs = [run for group in groups for run in group.runs]
    charts = [(metric.name, metric.label, metric.factor) for metric in CHARTED]
    measures = [chart for chart in charts if any(np.isfinite(run.metric(chart[0])).any() for run in runs)]
    others = dict.fromkeys(name for run in runs for name in run.series)  # of another version
    measures += [(name, name, 1) for name in others if name not in METRICS_BY_NAME and name not in COORDINATES]
    classes, classes_of = _classes(runs)
    confusion, missing = _confusions(runs, classes)
    first_runs = [0, *np.cumsum([len(group.runs) for group in groups]).tolist()]
    return {
        "groups": list(map(_group, groups, group_styles(groups), first_runs)),
        "byScore": colored_by_score(groups),
        "runs": [_run(run, index, run in g.counted_runs, measures) for index, g in enumerate(groups) for run in g.runs],
        "measures": measures,
        "axes": [[name, title] for name, _, title in X_AXES if name not in _unused_cost_axes(runs)],
        "settings": _sweep(groups),
        "classes": list(classes),
        "classesOf": classes_of,
        "confusion": confusion,
        "noConfusion": missing,
    }


def _group(group: Group, style: GroupStyle, first: int) -> dict[str, object]:
    return {
        "label": group.label,
        "light": style.light,
        "dark": style.dark,
        "line": style.line,
        "marker": style.marker,
        "runs": list(range(first, first + len(group.runs))),
        "state": group.state_text,
    }


def _run(run: RunHistory, group: int, counted: bool, measures: Sequence[tuple[str, str, int]]) -> dict[str, object]:
    start_time = run.starts[0].start_time if run.starts else math.nan
    hours = (run.series["t"] - start_time) / 3600
    x_values = {
        "epoch": run.series["epoch"],
        "step": run.metric("step"),
        "wall": hours,
        "training": run.metric("clock_s") / 3600,
        "gpu": run.metric("gpu_hours"),
        "core": run.metric("core_hours"),
    }
    return {
        "id": run.id,
        "seed": run.seed,
        "group": group,
        "state": run.state,
        "counted": counted,
        "at": {name: _values(values) for name, values in x_values.items()},
        "series": {name: _values(run.metric(name)) for name, _, _ in measures if name in run.series},
        "restarts": [_restart(run, previous.end_cause, start, x_values) for previous, start in pairwise(run.starts)],
        "last": _value(run.last_top1),
        "best": _value(run.best_top1),
        "cost": {
            "gpu": _value(run.gpu_hours),
            "core": _value(run.core_hours),
            "parameters": run.parameters,
            "training": _value(_newest(run.metric("clock_s")) / 3600),
        },
    }


def _restart(run: RunHistory, cause: str, start: Start, x_values: dict[str, np.ndarray]) -> dict[str, object]:
    """Return where a run resumed: the time on the wall-clock axis, and the step it resumed from on the other axes."""
    epochs, steps = run.series["epoch"], run.metric("step")
    known = len(epochs) and np.isfinite(steps).all()
    epoch = float(np.interp(start.step, [0, *steps], [0, *epochs])) if known else float(start.epoch)
    positions = {
        name: float(np.interp(epoch, [0, *epochs], [0, *np.nan_to_num(values)])) if len(epochs) else 0.0
        for name, values in x_values.items()
    }
    positions |= {"wall": (start.start_time - run.starts[0].start_time) / 3600, "step": start.step}
    return {"at": {name: _value(value) for name, value in positions.items()}, "cause": cause, "step": start.step}


def _unused_cost_axes(runs: Sequence[RunHistory]) -> list[str]:
    """Return those of GPU-hours and core-hours that no run has spent."""
    spent = {"gpu": any(run.gpu_hours for run in runs), "core": any(run.cpu_only for run in runs)}
    return [name for name, used in spent.items() if not used]


def _sweep(groups: Sequence[Group]) -> list[dict[str, object]]:
    """Return the settings that differ as axes of parallel coordinates, with each group's value on each axis."""
    axes: list[dict[str, object]] = []
    for name in differing_settings(groups):
        values = [group.settings.get(name) for group in groups]
        numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)]
        if len(numbers) == len(values):
            axes.append(
                {"name": name, "values": numbers, "log": min(numbers) > 0 and max(numbers) >= 10 * min(numbers)}
            )
        else:
            texts = [format_setting(v) for v in values]
            axes.append({"name": name, "values": texts, "words": sorted(set(texts))})
    return axes


def _classes(runs: Sequence[RunHistory]) -> tuple[tuple[str, ...], str]:
    """Return the class names that most runs have, and of which data set these are if some runs have others."""
    with_matrix = [(run.classes_of(matrix), run) for run in runs if (matrix := run.confusion()) is not None]
    names = Counter(named for named, _ in with_matrix)
    if not names:
        return (), ""
    common = names.most_common(1)[0][0]
    return common, "" if len(names) == 1 else next(run.data_name for named, run in with_matrix if named == common)


def _confusions(
    runs: Sequence[RunHistory], classes: tuple[str, ...]
) -> tuple[dict[str, dict[str, list[int]]], dict[str, str]]:
    """Return each run's confusion matrix, and for runs without a complete one the reason; both by the run's position.

    A matrix is the number of correct images and of images per class, and the mistakes as [index in the flat matrix,
    count, ...].
    """
    out: dict[str, dict[str, list[int]]] = {}
    missing: dict[str, str] = {}
    remaining = MAX_MISTAKES
    for index, run in enumerate(runs):
        matrix = run.confusion()
        if matrix is None:
            missing[str(index)] = "without a confusion matrix, which comes with the final evaluation"
            continue
        if run.classes_of(matrix) != classes:
            missing[str(index)] = f"it has other classes, those of {run.data_name}"
            continue
        out[str(index)] = {"right": np.diag(matrix).tolist(), "of": matrix.sum(axis=1).tolist()}
        mistakes = matrix.copy()
        np.fill_diagonal(mistakes, 0)
        cells = np.flatnonzero(mistakes)
        remaining -= len(cells)
        if len(classes) > MAX_PAGE_CLASSES:
            missing[str(index)] = f"a matrix of more than {MAX_PAGE_CLASSES} classes is left out of the page"
        elif remaining < 0:
            missing[str(index)] = "its matrix is left out, for the page to stay small; compare fewer runs to see it"
        else:
            out[str(index)]["mistakes"] = np.stack([cells, mistakes.ravel()[cells]], axis=1).ravel().tolist()
    return out, missing


def _newest(values: np.ndarray) -> float:
    seen = values[np.isfinite(values)]
    return float(seen[-1]) if len(seen) else math.nan


def _values(values: np.ndarray) -> Values:
    return [_value(v) for v in values.tolist()]


def _value(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.{DIGITS}g}")
