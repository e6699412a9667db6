"""Tests whether groups differ: chooses the pairs of groups and applies Welch's and McNemar's tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from runyard.analysis.compare.groups import Group
from runyard.analysis.compare.statistics import Welch, holm_adjust, mcnemar, welch
from runyard.errors import UserError
from runyard.runs.results.history import RunHistory, SavedPredictions

MAX_PAIRWISE_GROUPS = 4  # up to so many groups all pairs are compared
OTHER_IMAGES, UNKNOWN_IMAGES = "other test images", "test images not known"
NOT_KEPT, NO_SPREAD = "no predictions kept", "no spread between seeds"
MAX_AGAINST_BEST = 12  # of more groups only so many, best first, take part in the comparison with the best


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of two networks on the same test images.

    ``only_first`` counts the images that the first network alone classified correctly, ``only_second`` the second."""

    first: RunHistory
    second: RunHistory
    images: int
    only_first: int
    only_second: int
    p: float
    p_holm: float


@dataclass(frozen=True)
class PairTest:
    """Two groups: the difference of their mean last test top-1, first minus second, and its tests.

    Attributes:
        difference: As a fraction of 1.
        welch: Welch's t over seeds; None if it is impossible, and then ``no_welch`` says why.
        means_p_holm: The p of ``welch``, adjusted over all pairs that have one.
        mcnemar: McNemar's test of one seed's networks; None if it is impossible, and then ``no_mcnemar`` says why.
    """

    first: Group
    second: Group
    difference: float
    welch: Welch | None
    means_p_holm: float
    no_welch: str
    mcnemar: McNemar | None
    no_mcnemar: str


@dataclass(frozen=True)
class PairTests:
    """All pairs that were compared, each within one data set.

    Attributes:
        baseline: The one group with which all others are compared, if there is one.
        baseline_is_best: Groups were compared with the best of a data set, which these results and not the user chose.
        excluded: Groups that were not compared: unfinished, without another group of their data set (or of another
            data set than the baseline), or not among the best of many.
    """

    pairs: list[PairTest]
    baseline: Group | None
    baseline_is_best: bool
    excluded: list[Group]


def compare_groups(groups: Sequence[Group], baseline: str | None = None) -> PairTests:
    """Compare the finished groups of each data set: all pairs, or with ``baseline``, or of many each with the best.

    Raises:
        UserError: ``baseline`` matches no group, or one without a finished run.
    """
    eligible = [group for group in groups if group.finished and np.isfinite(group.mean("last"))]
    eligible.sort(key=lambda group: -group.mean("last"))
    against = _named(baseline, groups, eligible) if baseline is not None else None
    sets: dict[str, list[Group]] = {}
    for group in eligible:
        sets.setdefault(group.runs[0].data_name, []).append(group)
    if against is not None:
        couples = [(group, against) for group in sets[against.runs[0].data_name] if group is not against]
    else:
        couples = [couple for members in sets.values() for couple in _couples(members)]
    baseline_is_best = against is None and any(len(members) > MAX_PAIRWISE_GROUPS for members in sets.values())
    if baseline_is_best and len({id(second) for _, second in couples}) == 1:
        against = couples[0][1]
    predictions_of: dict[RunHistory, SavedPredictions | None] = {}
    pairs = _adjusted([_pair(first, second, predictions_of) for first, second in couples])
    compared = {id(group) for couple in couples for group in couple}
    return PairTests(pairs, against, baseline_is_best, [group for group in groups if id(group) not in compared])


def _couples(members: Sequence[Group]) -> list[tuple[Group, Group]]:
    """Return the pairs to compare among one data set's groups, which come best first."""
    if len(members) <= MAX_PAIRWISE_GROUPS:
        return list(combinations(members, 2))
    return [(group, members[0]) for group in members[1:MAX_AGAINST_BEST]]


def _named(name: str, groups: Sequence[Group], eligible: Sequence[Group]) -> Group:
    matches = [g for g in groups if g.label == name] or [
        g for g in groups if name and any(run.id.startswith(name) for run in g.runs)
    ]
    if len(matches) != 1:
        labels = [group.label for group in groups]
        some_labels = f"{', '.join(labels[:6])}{' and others' if len(labels) > 6 else ''}"
        raise UserError(
            f"--baseline {name}: fits {len(matches) or 'none'} of the rows: {some_labels}", "give one, or a run's id"
        )
    if matches[0] not in eligible:
        problem = f"--baseline {name}: none of its runs has finished ({matches[0].state_text})"
        raise UserError(problem, "give another, or compare again once one has")
    return matches[0]


def _pair(first: Group, second: Group, predictions_of: dict[RunHistory, SavedPredictions | None]) -> PairTest:
    a, b = (g.values("last")[np.isfinite(g.values("last"))] for g in (first, second))
    welch_result, no_welch = None, ""
    if single := [g.label for g, values in ((first, a), (second, b)) if len(values) < 2]:
        no_welch = f"not enough seeds (n=1): {' and '.join(single)}"
    else:
        welch_result = welch(a, b)
        no_welch = "" if welch_result else NO_SPREAD
    mcnemar_result, no_mcnemar = _paired(first, second, predictions_of)
    return PairTest(first, second, float(a.mean() - b.mean()), welch_result, 1.0, no_welch, mcnemar_result, no_mcnemar)


def _paired(
    first: Group, second: Group, predictions_of: dict[RunHistory, SavedPredictions | None]
) -> tuple[McNemar | None, str]:
    """Test the networks of the lowest common seed, or of each group's lowest seed; no result influences the choice."""
    first_sha256, second_sha256 = first.counted_runs[0].test_sha256, second.counted_runs[0].test_sha256
    if first_sha256 is None or second_sha256 is None:
        return None, UNKNOWN_IMAGES
    if first_sha256 != second_sha256:
        return None, OTHER_IMAGES
    for run in (*first.counted_runs, *second.counted_runs):
        if run not in predictions_of:
            predictions_of[run] = run.predictions()
    first_runs, second_runs = (
        [run for run in g.counted_runs if predictions_of[run] is not None] for g in (first, second)
    )
    if not first_runs or not second_runs:
        return None, NOT_KEPT
    shared = [(a, b) for a in first_runs for b in second_runs if a.seed == b.seed]
    a, b = shared[0] if shared else (first_runs[0], second_runs[0])
    first_predictions, second_predictions = predictions_of[a], predictions_of[b]
    if first_predictions is None or second_predictions is None:
        return None, NOT_KEPT
    if not (
        np.array_equal(first_predictions.index, second_predictions.index)
        and np.array_equal(first_predictions.label, second_predictions.label)
    ):
        return None, OTHER_IMAGES
    right_a, right_b = (
        first_predictions.predicted == first_predictions.label,
        second_predictions.predicted == second_predictions.label,
    )
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return McNemar(a, b, len(first_predictions.index), only_a, only_b, mcnemar(only_a, only_b), 1.0), ""


def _adjusted(pairs: list[PairTest]) -> list[PairTest]:
    welch_ps = [pair.welch.p for pair in pairs if pair.welch]
    mcnemar_ps = [pair.mcnemar.p for pair in pairs if pair.mcnemar]
    welch_holm, mcnemar_holm = iter(holm_adjust(welch_ps)), iter(holm_adjust(mcnemar_ps))
    return [
        replace(
            pair,
            means_p_holm=next(welch_holm) if pair.welch else pair.means_p_holm,
            mcnemar=replace(pair.mcnemar, p_holm=next(mcnemar_holm)) if pair.mcnemar else None,
        )
        for pair in pairs
    ]
