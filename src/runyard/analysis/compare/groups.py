"""Which runs are repetitions of one another, and in what the others differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from runyard.analysis.compare.measures import METRICS
from runyard.analysis.compare.text import on_one_line
from runyard.runs.history import FlatSettings, RunHistory
from runyard.runs.reading import affects_learning

STATES = ("finished", "running", "waiting", "interrupted", "pruned", "failed", "silent", "not started")


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ only in seed, by rising seed; a row of the table.

    Attributes:
        label: Its name in tables, legends and messages: the experiment's name, with a letter where several groups share
            one ("starter-a"), or the run's id with ``by_run``. Unique among the groups made together.
        runs: At least one, whatever their states.
    """

    label: str
    runs: tuple[RunHistory, ...]

    @cached_property
    def counted_runs(self) -> tuple[RunHistory, ...]:
        """The runs that figures are made of: those that finished, or all where none did; of each seed one, the newest.

        A run repeated with its seed is no independent repetition, and a run under way would drag a mean down. One that
        was never evaluated does not count beside one that was: ``seed_count`` is what the means are made of.
        """
        eligible = [run for run in self.runs if run.state == "finished"] or self.runs
        eligible = [run for run in eligible if np.isfinite(run.last_top1)] or eligible
        by_seed: dict[int | None, RunHistory] = {}
        for run in sorted(eligible, key=lambda run: (len(run.series["epoch"]) > 0, run.created)):
            by_seed[run.seed] = run
        return tuple(run for run in self.runs if run is by_seed.get(run.seed))

    @property
    def seed_count(self) -> int:
        """How many seeds figures are made of."""
        return len(self.counted_runs)

    @property
    def finished(self) -> bool:
        """At least one of its runs is, and figures are of those."""
        return any(run.state == "finished" for run in self.runs)

    @property
    def state_text(self) -> str:
        """ "" where all have finished; else as "failed 12/50" of one run, or "2 finished, 1 failed"."""
        if all(run.state == "finished" for run in self.runs):
            return ""
        if len(self.runs) == 1:
            run = self.runs[0]
            return run.state if run.state == "not started" else f"{run.state} {run.epochs_done}/{run.epochs}"
        counts = Counter(run.state for run in self.runs)
        return ", ".join(f"{counts[state]} {state}" for state in sorted(counts, key=STATES.index))

    @property
    def settings(self) -> FlatSettings:
        """Of its first run; they are all alike, but for the seed and for where things lie."""
        return self.runs[0].settings

    @property
    def name(self) -> str:
        return self.runs[0].name

    def values(self, measure: str) -> np.ndarray:
        """float64 [n]: one of ``MEASURES`` (last, gpu_hours, ...) of each run that counts, NaN where it has none."""
        return np.array([METRICS[measure].value_of(run) for run in self.counted_runs], np.float64)

    def mean(self, measure: str) -> float:
        """Of the runs that have it; NaN where none has."""
        values = self.values(measure)
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def group_runs(runs: Iterable[RunHistory], *, by_run: bool = False) -> list[Group]:
    """The groups in order of their first runs. With ``by_run`` each run is its own.

    Runs of one configuration on other test images are no repetitions: they are told apart by the data's identity. One
    that has not met its data yet goes with those that have, where all of these met the same.
    """
    runs = list(runs)
    test_sets: dict[str, set[str]] = {}
    for run in runs:
        test_sets.setdefault(run.settings_sha256, set()).update([run.test_sha256] if run.test_sha256 else [])
    members: dict[tuple[str, ...], list[RunHistory]] = {}
    for run in runs:
        known_sets = test_sets[run.settings_sha256]
        data = run.test_sha256 or (min(known_sets) if len(known_sets) == 1 else "")
        members.setdefault((str(run.directory),) if by_run else (run.settings_sha256, data), []).append(run)
    groups = list(members.values())
    names = [on_one_line(m[0].id if by_run else m[0].name) for m in groups]
    labels = names if by_run else _letters(names)
    return [
        Group(label, tuple(sorted(m, key=lambda run: (run.seed is None, run.seed or 0, run.created))))
        for label, m in zip(labels, groups, strict=True)
    ]


def differing_settings(groups: Iterable[Group]) -> list[str]:
    """Dotted names of the settings in which the groups differ, in the configuration's order; seed and name not."""
    groups = list(groups)
    names = dict.fromkeys(
        name for g in groups for name in g.settings if affects_learning(name) and name not in ("seed", "name")
    )
    return [name for name in names if len({format_setting(g.settings.get(name)) for g in groups}) > 1]


def format_setting(value: Any) -> str:
    """A setting's value as the command line has it, on one line."""
    if isinstance(value, str):
        return on_one_line(value)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list):
        return f"[{','.join(map(format_setting, value))}]"
    return json.dumps(value, default=str)


def _letters(names: list[str]) -> list[str]:
    """Names that occur several times get -a, -b, ... -z, -aa, ..."""
    taken, count, out = set(names), dict.fromkeys(names, 0), []
    for name in names:
        if names.count(name) == 1:
            out.append(name)
            continue
        while True:
            label = f"{name}-{_letter(count[name])}"
            count[name] += 1
            if label not in taken:
                break
        taken.add(label)
        out.append(label)
    return out


def _letter(number: int) -> str:
    letters = ""
    while number >= 0:
        number, remainder = divmod(number, 26)
        letters, number = chr(ord("a") + remainder) + letters, number - 1
    return letters
