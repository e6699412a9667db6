"""Ranks the groups of finished runs of each data set, with a limit on the number of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from runyard.analysis.compare.groups import Group, format_setting
from runyard.analysis.compare.table import METRICS_WITH_STD, TableRow, dataset_labels, json_safe, table_rows
from runyard.analysis.compare.text import Column, format_numbers, format_percents, on_one_line
from runyard.errors import UserError

RANKING_METRICS = {
    "top1": "last",
    "best": "best",
}  # as the journal's final row calls them: the last and the best test top-1


@dataclass(frozen=True)
class Leaderboard:
    """The ranking of one data set, best first, and how many groups are not ranked.

    Attributes:
        too_large: Number of groups with more parameters than the limit.
        unknown_size: Number of groups with an unknown number of parameters, if there is a limit.
        unfinished: Number of groups without a finished run.
    """

    data: str
    rows: list[TableRow]
    too_large: int
    unknown_size: int
    unfinished: int

    def top(self, count: int) -> Leaderboard:
        """Return the leaderboard cut to its first ``count`` rows."""
        return replace(self, rows=self.rows[:count])


def make_leaderboards(
    groups: Sequence[Group], metric: str = "top1", *, data: str | None = None, max_parameters: float | None = None
) -> list[Leaderboard]:
    """Return a leaderboard for each test set ("cifar10", "cifar10 (2)"), ranked by means over seeds.

    Some leaderboards may be empty, but not all.

    Raises:
        UserError: no run has the data set ``data``, or nothing is left to rank.
    """
    members: dict[str, list[Group]] = {}
    for group, label in zip(groups, dataset_labels(groups), strict=True):
        members.setdefault(label, []).append(group)
    if data is not None:
        matching = {label: g for label, g in members.items() if data in (label, g[0].runs[0].data_name)}
        if not matching:
            raise UserError(f"--data {data}: no run of it", f"there are {', '.join(sorted(members))}")
        members = matching
    boards = [_board(label, members[label], RANKING_METRICS[metric], max_parameters) for label in sorted(members)]
    if not any(board.rows for board in boards):
        large, unknown = sum(board.too_large for board in boards), sum(board.unknown_size for board in boards)
        reason = (
            f"--max-parameters {max_parameters:g}: all {large + unknown} finished are larger"
            + " or of unknown size" * bool(unknown)
            if large + unknown and max_parameters is not None
            else "no run has finished: nothing to rank yet"
        )
        raise UserError(f"{reason}. {exclusion_text(boards, max_parameters)}")
    return boards


def leaderboard_columns(board: Leaderboard, metric: str) -> list[Column]:
    """Return the columns of a leaderboard. Hours are for one run, as means over the counted seeds."""
    table, name = board.rows, RANKING_METRICS[metric]

    def values_of(key: str) -> list[float]:
        return [row.values[key] for row in table]

    out = [
        Column("", [str(rank) for rank in range(1, len(table) + 1)]),
        Column("run", [row.group.label for row in table], right_aligned=False),
    ]
    for column_name in (name, *(other for other in METRICS_WITH_STD if other != name)):
        out.append(Column(f"{column_name} %", format_percents(values_of(column_name), values_of(f"{column_name}_sd"))))
    out += [
        Column("seeds", [str(row.group.seed_count) for row in table]),
        Column("parameters", format_numbers(values_of("parameters"))),
        Column(
            "model", [format_setting(row.group.settings.get("model.name", "")) for row in table], right_aligned=False
        ),
        Column("epochs", [format_setting(row.group.settings.get("epochs", "")) for row in table]),
    ]
    for hours, short in (("gpu_hours", "GPU-h"), ("core_hours", "core-h")):
        if any(value == value for value in values_of(hours)):
            out.append(Column(short, format_numbers(values_of(hours))))
    newest = [max(row.group.counted_runs, key=lambda run: run.created) for row in table]
    out.append(Column("newest run", [on_one_line(run.id) for run in newest], right_aligned=False))
    return out


def as_dicts(board: Leaderboard, metric: str) -> list[dict[str, object]]:
    """Return a flat mapping for each rank, for JSON and CSV; an unknown value is None."""
    names = (RANKING_METRICS[metric], f"{RANKING_METRICS[metric]}_sd", "parameters", "gpu_hours", "core_hours")
    return [
        {
            "data": board.data,
            "place": rank,
            "run": row.group.label,
            "recipe": row.group.name,
            "model": json_safe(row.group.settings.get("model.name")),
            "epochs": json_safe(row.group.settings.get("epochs")),
            "n": row.group.seed_count,
            "seeds": " ".join(str(run.seed) for run in row.group.counted_runs),
            **{name: row.values[name] if math.isfinite(row.values[name]) else None for name in names},
            "ids": " ".join(run.id for run in row.group.counted_runs),
        }
        for rank, row in enumerate(board.rows, 1)
    ]


def exclusion_text(boards: Sequence[Leaderboard], max_parameters: float | None) -> str:
    """Return a sentence on what was not ranked; an empty string if all was ranked."""
    large, unknown, unfinished = (
        sum(getattr(board, name) for board in boards) for name in ("too_large", "unknown_size", "unfinished")
    )
    parts = []
    if large:
        parts.append(f"{large} with more than {max_parameters:,.0f} parameters")
    if unknown:
        parts.append(f"{unknown} with an unknown number of parameters")
    if unfinished:
        parts.append(f"{unfinished} without a finished run")
    return f"Not ranked: {', '.join([*parts[:-2], ' and '.join(parts[-2:])])}." if parts else ""


def _board(label: str, groups: list[Group], measure: str, max_parameters: float | None) -> Leaderboard:
    eligible = [row for row in table_rows(groups) if row.group.finished and row.values[measure] == row.values[measure]]
    sizes = [row.values["parameters"] for row in eligible]
    small = [row for row, size in zip(eligible, sizes, strict=True) if max_parameters is None or size <= max_parameters]
    small.sort(key=lambda row: -row.values[measure])
    unknown = 0 if max_parameters is None else sum(size != size for size in sizes)
    return Leaderboard(label, small, len(eligible) - len(small) - unknown, unknown, len(groups) - len(eligible))
