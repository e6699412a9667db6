"""Summarizes a sweep: the importance of each setting, the best point, failures, and cost."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runyard.analysis.compare.groups import Group, differing_settings, format_setting
from runyard.analysis.compare.measures import MEASURES
from runyard.runs.results.history import RunHistory

BINS = 4  # for a setting that was sampled from a range, not chosen from a few values
METHOD = "ε²: share of the variance between runs that a setting's main effect explains, corrected for chance"


@dataclass(frozen=True)
class Effect:
    """The importance of one setting, a fraction of the variance; None if there are too few runs to estimate it."""

    setting: str
    levels: int
    binned: bool
    importance: float | None


@dataclass(frozen=True)
class Sweep:
    """The results and the cost of a sweep.

    Attributes:
        measure: The metric that ranks points: "val" if every finished run has a validation split, which is what
            ``runyard sweep`` maximizes too; else "last", and then the test set itself chooses the best point.
        effects: The importance of each setting that was varied, the largest first.
        full_factorial: Each combination of the settings' levels was evaluated equally often, so shares do not overlap.
        seed_variance_fraction: Fraction of the variance between seeds of equal settings; None without them.
        evaluated: The number of finished runs, from which the shares are computed.
        best: The group with the highest mean of the measure, or None if no run has finished.
        failures: The failed runs by reason, from ``failures_by_reason``.
        refused: A reason for each trial that did not become a run.
        gpu_hours, core_hours: Cost of all runs, h; ``..._lost`` of those that did not finish.
        wall_s: Time from the first start to the last sign of life, s.
    """

    runs: int
    states: dict[str, int]
    measure: str
    effects: list[Effect]
    full_factorial: bool
    seed_variance_fraction: float | None
    evaluated: int
    best: Group | None
    failures: dict[str, list[RunHistory]]
    refused: tuple[str, ...]
    gpu_hours: float
    core_hours: float
    gpu_hours_lost: float
    core_hours_lost: float
    wall_s: float


def summarize_sweep(groups: Sequence[Group], refused: tuple[str, ...] = ()) -> Sweep:
    """Summarize all runs of the groups, and the trials that were ``refused`` before they became runs."""
    runs = [run for group in groups for run in group.runs]
    eligible = [
        (run, group)
        for group in groups
        if group.finished
        for run in group.counted_runs
        if run.last_top1 == run.last_top1
    ]
    measure = "val" if eligible and all(math.isfinite(MEASURES["val"].value_of(run)) for run, _ in eligible) else "last"
    scores = np.array([MEASURES[measure].value_of(run) for run, _ in eligible])
    levels = {name: _levels([run.settings.get(name) for run, _ in eligible]) for name in differing_settings(groups)}
    effects = [
        Effect(name, len(set(setting_levels)), binned, epsilon_squared(setting_levels, scores))
        for name, (setting_levels, binned) in levels.items()
    ]
    effects.sort(key=lambda effect: -1.0 if effect.importance is None else -effect.importance)
    between_groups = epsilon_squared([group.label for _, group in eligible], scores)
    finished = [group for group in groups if group.finished and group.mean("last") == group.mean("last")]
    unfinished = [run for run in runs if run.state != "finished"]
    starts = [
        start for run in runs for start in run.starts if start.start_time > 0
    ]  # one without a time says nothing here
    return Sweep(
        runs=len(runs),
        states=dict(Counter(run.state for run in runs)),
        measure=measure,
        effects=effects,
        full_factorial=_crossed([setting_levels for setting_levels, _ in levels.values()]),
        seed_variance_fraction=None if between_groups is None else 1 - between_groups,
        evaluated=len(eligible),
        best=max(finished, key=lambda group: group.mean(measure), default=None),
        failures=failures_by_reason(runs),
        refused=refused,
        gpu_hours=sum(run.gpu_hours for run in runs),
        core_hours=sum(run.core_hours for run in runs),
        gpu_hours_lost=sum(run.gpu_hours for run in unfinished),
        core_hours_lost=sum(run.core_hours for run in unfinished),
        wall_s=max(s.end_time for s in starts) - min(s.start_time for s in starts) if starts else 0.0,
    )


def epsilon_squared(levels: Sequence[object], scores: np.ndarray) -> float | None:
    """Return ε² (Kelley 1935): the fraction of the scores' variance between levels, corrected for chance; 0 to 1.

    None if it cannot be estimated: one level, as many levels as scores, or equal scores.
    """
    names = sorted(set(levels), key=str)
    if not 1 < len(names) < len(scores) or np.ptp(scores) == 0:
        return None
    total = float(((scores - scores.mean()) ** 2).sum())
    parts = [scores[[level == name for level in levels]] for name in names]
    within = sum(float(((part - part.mean()) ** 2).sum()) for part in parts)
    chance = within / (len(scores) - len(names))  # the variance within levels, by its degrees of freedom
    return min(1.0, max(0.0, (total - within - (len(names) - 1) * chance) / total))


def failures_by_reason(runs: Sequence[RunHistory]) -> dict[str, list[RunHistory]]:
    """Return the runs that failed, or give no sign of life, by reason, the most frequent reason first."""
    by_reason: dict[str, list[RunHistory]] = {}
    for run in runs:
        if run.state in ("failed", "unknown"):
            by_reason.setdefault(failure_reason(run), []).append(run)
    return dict(sorted(by_reason.items(), key=lambda item: -len(item[1])))


def failure_reason(run: RunHistory) -> str:
    """Return why a run failed, without the numbers that differ from run to run, so that equal reasons match."""
    if run.state == "unknown":
        return "no sign of life, so it was killed or its machine is gone"
    return re.sub(r"\d[\d.,e+-]*\d|\d", "…", run.message.partition("\n")[0]) or "no reason given"


def _levels(values: Sequence[object]) -> tuple[list[str], bool]:
    """Return a setting's level in each run, and whether the levels are bins of sampled numbers."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    levels = [format_setting(v) for v in values]
    if len(numbers) < len(values) or len(set(levels)) <= max(BINS, len(values) // 2):
        return levels, False
    sampled = np.array(numbers, np.float64)
    edges = np.quantile(sampled, np.linspace(0, 1, BINS + 1)[1:-1])
    return [str(bin_index) for bin_index in np.searchsorted(edges, sampled)], True


def _crossed(levels: Sequence[Sequence[str]]) -> bool:
    if len(levels) < 2:
        return True
    counts = Counter(zip(*levels, strict=True))
    return (
        len(counts) == math.prod(len(set(setting_levels)) for setting_levels in levels)
        and len(set(counts.values())) == 1
    )
