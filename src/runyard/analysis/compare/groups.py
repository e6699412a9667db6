"""Groups runs that repeat one configuration with other seeds, and lists the settings in which groups differ."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from string import ascii_lowercase

import numpy as np

from runyard.analysis.compare.measures import MEASURES
from runyard.analysis.compare.text import on_one_line
from runyard.runs.identity import separates_runs
from runyard.runs.results.history import FlatSettings, RunHistory

STATES = ("finished", "running", "waiting", "interrupted", "pruned", "failed", "unknown")  # in this order


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ only in their seed, in order of the seed: a row of the table.

    Attributes:
        label: The name in tables, legends and messages: the experiment's name, with a letter if several groups share
            one ("starter-a"), or the run's id with ``by_run``. Unique among the groups made together.
        runs: At least one run, in any state.
    """

    label: str
    runs: tuple[RunHistory, ...]

    @cached_property
    def counted_runs(self) -> tuple[RunHistory, ...]:
        """The runs that enter means: the newest finished run of each seed, or the newest run if none has finished.

        A second run with the same seed is no independent repetition, and an unfinished run would lower a mean. A run
        that was never evaluated does not count beside one that was: a mean is over ``seed_count`` values.
        """
        eligible = [run for run in self.runs if run.state == "finished"] or self.runs
        eligible = [run for run in eligible if np.isfinite(run.last_top1)] or eligible
        by_seed: dict[int | None, RunHistory] = {}
        for run in sorted(eligible, key=lambda run: (len(run.series["epoch"]) > 0, run.created)):
            by_seed[run.seed] = run
        return tuple(run for run in self.runs if run is by_seed.get(run.seed))

    @property
    def seed_count(self) -> int:
        """The number of seeds, each with one run, that enter means."""
        return len(self.counted_runs)

    @property
    def finished(self) -> bool:
        """Whether at least one run has finished; then only finished runs enter means."""
        return any(run.state == "finished" for run in self.runs)

    @property
    def state_text(self) -> str:
        """Empty if all runs have finished, else "failed 12/50" for one run, or "2 finished, 1 failed" for several."""
        if all(run.state == "finished" for run in self.runs):
            return ""
        if len(self.runs) == 1:
            run = self.runs[0]
            return f"{run.state} {run.epochs_done}/{run.epochs}" if run.starts else str(run.state)
        counts = Counter(run.state for run in self.runs)
        return ", ".join(f"{counts[state]} {state}" for state in sorted(counts, key=STATES.index))

    @property
    def settings(self) -> FlatSettings:
        """The settings of the first run; those of the others differ only in the seed, and in how and where they ran."""
        return self.runs[0].settings

    @property
    def name(self) -> str:
        return self.runs[0].name

    def values(self, measure: str) -> np.ndarray:
        """Return a measure of ``MEASURES`` (last, ...) for each counted run, float64 [n]; NaN if a run has none."""
        return np.array([MEASURES[measure].value_of(run) for run in self.counted_runs], np.float64)

    def mean(self, measure: str) -> float:
        """Return the mean over the counted runs that have the metric; NaN if none has."""
        values = self.values(measure)
        return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def group_runs(runs: Iterable[RunHistory], *, by_run: bool = False) -> list[Group]:
    """Return the groups in order of their first runs. With ``by_run`` each run is a group.

    Runs of one configuration on different test images are no repetitions: the sha256 of the test set separates them. A
    run that has not loaded its data yet joins the runs that have, if all of these loaded the same.
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
    """Return the dotted names of settings, except seed and name, that differ; in the configuration's order."""
    groups = list(groups)
    names = dict.fromkeys(
        name for g in groups for name in g.settings if separates_runs(name) and name not in ("seed", "name")
    )
    return [name for name in names if len({format_setting(g.settings.get(name)) for g in groups}) > 1]


def format_setting(value: object) -> str:
    """Return a setting's value as it is written on the command line, on one line."""
    if isinstance(value, str):
        return on_one_line(value)
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list):
        return f"[{','.join(map(format_setting, value))}]"
    return json.dumps(value, default=str)


def _letters(names: list[str]) -> list[str]:
    """Append -a, -b, ... -z, -aa, ... to names that occur several times."""
    taken, out = set(names), []
    suffixes = {name: map("".join, _letter_combinations()) for name in names}
    for name in names:
        labels = (f"{name}-{suffix}" for suffix in suffixes[name])
        out.append(name if names.count(name) == 1 else next(label for label in labels if label not in taken))
        taken.add(out[-1])
    return out


def _letter_combinations() -> Iterator[tuple[str, ...]]:
    return itertools.chain.from_iterable(itertools.product(ascii_lowercase, repeat=n) for n in itertools.count(1))
