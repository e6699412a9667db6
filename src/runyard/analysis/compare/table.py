"""The table of a comparison: for each group the settings that differ, its accuracy, and its cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from runyard.analysis.compare.groups import Group, differing_settings, format_setting
from runyard.analysis.compare.measures import MEASURES, first_at_target
from runyard.analysis.compare.text import (
    MISSING,
    Column,
    format_durations,
    format_numbers,
    format_percents,
    on_one_line,
)
from runyard.errors import UserError

NAN = float("nan")
METRICS_WITH_STD = ("last", "best")  # shown with their standard deviation over seeds


@dataclass(frozen=True)
class TableRow:
    """A group in numbers. ``values`` has the mean of every metric over seeds, and what --target adds; NaN if unknown.

    ``last`` and ``best`` are means over all n seeds, or NaN. ``restarts``, ``gpu_hours_total`` and ``core_hours_total``
    are sums over all of the group's runs, failed ones included; times to the target are medians over seeds, infinite if
    most seeds never reached it.
    """

    group: Group
    settings: dict[str, object]
    data: str
    values: dict[str, float]


def table_rows(groups: Sequence[Group], target: float | None = None) -> list[TableRow]:
    """Return a row for each group, in the same order."""
    names, labels = differing_settings(groups), dataset_labels(groups)
    return [
        TableRow(g, {name: g.settings.get(name) for name in names}, label, _values(g, target))
        for g, label in zip(groups, labels, strict=True)
    ]


def dataset_labels(groups: Sequence[Group]) -> list[str]:
    """Return each group's data set, with a number if several test sets share the name: "cifar10 (2)"."""
    test_sets: dict[str, list[str]] = {}
    for g in groups:
        test = _test(g)
        if test is not None and test not in test_sets.setdefault(g.runs[0].data_name, []):
            test_sets[g.runs[0].data_name].append(test)
    out = []
    for g in groups:
        name, test = g.runs[0].data_name, _test(g)
        several = len(test_sets.get(name, [])) > 1
        label = f"{name} ({test_sets[name].index(test) + 1})" if several and test is not None else name
        out.append(on_one_line(label))
    return out


def sort_rows(table: list[TableRow], column: str) -> list[TableRow]:
    """Sort by a column: the highest first if higher is better, else the lowest first; -COLUMN reverses the order.

    Raises:
        UserError: there is no such column.
    """
    name, reverse = column.removeprefix("-"), column.startswith("-")
    keys = list(dict.fromkeys([*MEASURES, *(k for row in table for k in (*row.values, *row.settings)), *TEXT_COLUMNS]))
    all_columns = list(dict.fromkeys([*keys, *(k for row in table for k in row.group.settings)]))
    if name not in all_columns:
        raise UserError(f"--sort {column}: no such column", f"there are {', '.join(keys)}, and every setting")
    good_high = name in MEASURES and MEASURES[name].higher_is_better

    def value(row: TableRow) -> object:
        if name in row.values:
            return None if np.isnan(row.values[name]) else row.values[name]
        return TEXT_COLUMNS[name](row) if name in TEXT_COLUMNS else row.group.settings.get(name)

    def key(row: TableRow) -> tuple[bool, float, str]:
        v = value(row)
        return (False, float(v), "") if isinstance(v, (int, float)) else (True, 0.0, format_setting(v))

    known = sorted((r for r in table if value(r) is not None), key=key, reverse=good_high is not reverse)
    return known + [r for r in table if value(r) is None]


TEXT_COLUMNS: dict[str, Callable[[TableRow], str | int]] = {  # columns that are neither a measure nor a setting
    "run": lambda row: row.group.label,
    "n": lambda row: row.group.seed_count,
    "state": lambda row: row.group.state_text or "finished",
    "data": lambda row: row.data,
}


def table_columns(table: Sequence[TableRow], target: float | None = None) -> list[Column]:
    """Return the columns of the printed table: results, settings, costs. Columns without information are left out."""
    groups = [row.group for row in table]
    out = [Column("run", [g.label for g in groups], right_aligned=False)]
    if any(len(g.runs) > 1 for g in groups):
        out.append(Column("n", [str(g.seed_count) for g in groups]))
    if all(g.label == on_one_line(g.runs[0].id) for g in groups):  # by run
        out.append(Column("seed", [format_setting(g.runs[0].seed) for g in groups]))
    several = len({row.data for row in table}) > 1
    if several:
        out.append(Column("data", [row.data for row in table], right_aligned=False))
    if any(g.state_text for g in groups):
        out.append(Column("state", [g.state_text or "finished" for g in groups], right_aligned=False))

    def values_of(name: str) -> list[float]:
        return [row.values[name] for row in table]

    for name in METRICS_WITH_STD:
        out.append(Column(f"{name} %", format_percents(values_of(name), values_of(f"{name}_sd"))))
    if target is not None:
        goal = f"to {100 * target:g} %"
        out.append(Column(f"epochs {goal}", format_numbers(values_of("epochs_to_target"))))
        out.append(Column(f"time {goal}", format_durations(values_of("clock_s_to_target"))))
        out += [
            Column(f"{short} {goal}", format_numbers(values_of(f"{name}_to_target")))
            for name, short in HOURS
            if _any(values_of(name))
        ]
        out.append(Column("reached by", [f"{row.values['reached']:.0f}/{row.group.seed_count}" for row in table]))
    for name in table[0].settings:
        if several and name == "data.name":
            continue  # in the column data
        values = [row.settings[name] for row in table]
        are_numbers = all(isinstance(v, (int, float)) or v is None for v in values)
        out.append(Column(name, [format_setting(v) for v in values], right_aligned=are_numbers))
    out.append(Column("images/s", format_numbers(values_of("images_per_s"))))
    out += [Column(short, format_numbers(values_of(name))) for name, short in HOURS if _any(values_of(name))]
    out.append(Column("restarts", format_numbers(values_of("restarts"))))
    out.append(Column("data wait %", [f"{v:.1f}" if v == v else MISSING for v in values_of("data_wait_pct")]))
    if len({row.values["parameters"] for row in table if row.values["parameters"] == row.values["parameters"]}) > 1:
        out.append(Column("para- meters", format_numbers(values_of("parameters"))))
    return out


HOURS = (("gpu_hours", "GPU-h"), ("core_hours", "core-h"))


def as_dict(row: TableRow) -> dict[str, object]:
    """Return a JSON-ready mapping of a row, flat except for its settings and runs; an unknown value is None."""
    g = row.group
    return {
        "run": g.label,
        "name": g.name,
        "n": g.seed_count,
        "seeds": [run.seed for run in g.counted_runs],
        "state": g.state_text or "finished",
        "data": row.data,
        "settings": json_safe(row.settings),
        **{name: value if np.isfinite(value) else None for name, value in row.values.items()},
        "runs": [
            {
                "id": run.id,
                "seed": run.seed,
                "state": run.state,
                "message": run.message,
                "counted": run in g.counted_runs,
                "ranks": list(run.ranks),
            }
            for run in g.runs
        ],
    }


def json_safe(value: object) -> object:
    """Return a setting for JSON, which has no nan and no infinity: they become strings."""
    if isinstance(value, dict):
        return {name: json_safe(v) for name, v in value.items()}
    if isinstance(value, list):
        return [json_safe(v) for v in value]
    return format_setting(value) if isinstance(value, float) and not np.isfinite(value) else value


def csv_row(row: TableRow) -> dict[str, object]:
    """Return a row for CSV: settings by their dotted names, seeds and ids joined by spaces."""
    return {
        **{name: value for name, value in as_dict(row).items() if name not in ("runs", "seeds", "settings")},
        **{name: None if v is None else format_setting(json_safe(v)) for name, v in row.settings.items()},
        "seeds": " ".join(str(run.seed) for run in row.group.counted_runs),
        "ids": " ".join(run.id for run in row.group.runs),
    }


def _values(g: Group, target: float | None) -> dict[str, float]:
    values = {name: g.mean(name) for name in MEASURES}
    for name in METRICS_WITH_STD:
        seen = g.values(name)
        values[f"{name}_sd"] = float(seen.std(ddof=1)) if len(seen) > 1 else NAN
        if np.isnan(seen).any():  # a mean over fewer than n runs would not be the row's
            values[name] = NAN
    values["restarts"] = float(sum(len(run.restarts) for run in g.runs))
    for name, _ in HOURS:
        values[f"{name}_total"] = float(sum(getattr(run, name) for run in g.runs))
    if target is not None:
        reached = [first_at_target(run, target) for run in g.counted_runs]
        for name, key in (("epoch", "epochs"), ("clock_s", "clock_s"), *((hours, hours) for hours, _ in HOURS)):
            values[f"{key}_to_target"] = float(np.median([getattr(w, name) for w in reached]))
        values["reached"] = float(sum(np.isfinite(w.epoch) for w in reached))
    return values


def _test(g: Group) -> str | None:
    return next((run.test_sha256 for run in g.runs if run.test_sha256), None)


def _any(values: Sequence[float]) -> bool:
    return any(np.isfinite(values))
