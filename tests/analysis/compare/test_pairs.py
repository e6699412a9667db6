"""Which groups are tested, that each test is the one that is named, and that it is refused where it would mislead."""

from __future__ import annotations

import numpy as np
import pytest

from runyard.analysis.compare import pairs
from runyard.analysis.compare.groups import Group, group_runs
from runyard.analysis.compare.statistics import holm_adjust, mcnemar, welch
from runyard.errors import UserError
from tests.support.fake_runs import Make


def seeds(make: Make, *top1: float, **how: object) -> list[Group]:
    return group_runs([make(value, seed=at, **how) for at, value in enumerate(top1)])


def test_means_over_seeds_are_held_against_each_other_by_welch(make: Make) -> None:
    a, b = [0.92, 0.921, 0.923], [0.91, 0.912]
    (pair,) = pairs.compare_groups([*seeds(make, *a), *seeds(make, *b, lr=3e-3)]).pairs
    assert pair.welch == welch(a, b)
    assert pair.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert pair.no_mcnemar == "no predictions kept"


def test_with_one_seed_there_is_no_interval_and_it_is_said_which_row_lacks_them(make: Make) -> None:
    (pair,) = pairs.compare_groups([*seeds(make, 0.92, 0.93), *seeds(make, 0.9, lr=3e-3, name="alone")]).pairs
    assert pair.welch is None
    assert pair.no_welch == "not enough seeds (n=1): alone"


def test_mcnemar_counts_the_images_that_one_alone_got_right_on_the_lowest_shared_seed(make: Make) -> None:
    first = group_runs([make(0.9, seed=s, test_images=500) for s in (1, 2)])
    second = group_runs([make(0.8, seed=s, lr=3e-3, test_images=500) for s in (0, 2)])
    (pair,) = pairs.compare_groups([*first, *second]).pairs
    assert pair.mcnemar is not None
    assert (pair.mcnemar.first.seed, pair.mcnemar.second.seed) == (2, 2)
    right = []
    for run in (pair.mcnemar.first, pair.mcnemar.second):
        kept = run.predictions()
        assert kept is not None
        right.append(dict(zip(kept.index.tolist(), (kept.predicted == kept.label).tolist(), strict=True)))
    only_first = sum(right[0][i] and not right[1][i] for i in right[0])
    only_second = sum(right[1][i] and not right[0][i] for i in right[0])
    assert (pair.mcnemar.only_first, pair.mcnemar.only_second) == (only_first, only_second)
    assert pair.mcnemar.p == mcnemar(only_first, only_second)
    assert (only_first - only_second) / pair.mcnemar.images == pytest.approx(0.1)


def test_the_order_in_which_predictions_were_written_does_not_matter(make: Make) -> None:
    first, second = make(0.9, test_images=200), make(0.8, lr=3e-3, test_images=200)
    before = pairs.compare_groups(group_runs([first, second])).pairs[0].mcnemar
    kept = dict(np.load(second.directory / "predictions.npz"))
    order = np.random.default_rng(0).permutation(200)
    np.savez(second.directory / "predictions.npz", **{name: values[order] for name, values in kept.items()})
    assert pairs.compare_groups(group_runs([first, second])).pairs[0].mcnemar == before


@pytest.mark.parametrize("trouble", ["other data", "no identity", "other images", "other labels"])
def test_other_test_images_are_never_paired(make: Make, trouble: str) -> None:
    first = make(0.9, test_images=200)
    second = make(0.8, lr=3e-3, test_images=200, data="1" if trouble == "other data" else "0")
    if trouble == "no identity":
        from runyard.runs.results.reading import load_history

        (second.directory / "data.json").unlink()
        second = load_history(second.directory)
    kept = dict(np.load(second.directory / "predictions.npz"))
    if trouble == "other images":
        kept["index"] += 1
    if trouble == "other labels":
        kept["label"] = (kept["label"] + 1) % 10
    np.savez(second.directory / "predictions.npz", **kept)
    (pair,) = pairs.compare_groups(group_runs([first, second])).pairs
    assert pair.mcnemar is None
    assert pair.no_mcnemar == ("test images not known" if trouble == "no identity" else "other test images")


def test_groups_are_paired_within_their_own_data_set_alone(make: Make) -> None:
    def of(data: str, many: int) -> list[Group]:
        how = {"settings": {"data.name": data}, "data": str(many)}
        return group_runs([make(0.5 + at / 100, lr=1e-3 * (at + 1), **how) for at in range(many)])

    three, two = of("cifar10", 3), of("cifar100", 2)
    found = pairs.compare_groups([*three, *two])
    assert {(p.first.runs[0].data_name, p.second.runs[0].data_name) for p in found.pairs} == {
        ("cifar10", "cifar10"),
        ("cifar100", "cifar100"),
    }
    assert (len(found.pairs), found.baseline, found.baseline_is_best, found.excluded) == (4, None, False, [])
    many = of("mnist", 6)
    found = pairs.compare_groups([*many, *two])
    assert (len(found.pairs), found.baseline, found.baseline_is_best) == (6, None, True)  # five with the best, and one
    assert pairs.compare_groups([*many, *two], two[0].runs[0].id).excluded == many


def test_with_a_named_baseline_every_row_is_held_against_it(make: Make) -> None:
    groups = [seeds(make, 0.9 + at / 1000, lr=1e-3 * (at + 1))[0] for at in range(14)]
    found = pairs.compare_groups(groups, groups[0].runs[0].id)
    assert (len(found.pairs), found.excluded) == (13, [])


def test_a_run_alone_on_its_data_set_is_in_no_pair(make: Make) -> None:
    ours = [make(0.9), make(0.91, lr=3e-3)]
    other = make(0.5, settings={"data.name": "cifar100"}, data="1")
    found = pairs.compare_groups(group_runs([*ours, other]))
    assert {g.runs[0].data_name for p in found.pairs for g in (p.first, p.second)} == {"cifar10"}
    assert [g.runs[0] for g in found.excluded] == [other]
    assert pairs.compare_groups(group_runs([ours[0], other]), None).pairs == []


def test_unfinished_runs_are_in_no_pair(make: Make) -> None:
    groups = group_runs([make(0.9), make(0.91, lr=3e-3), make(0.95, lr=1e-2, done=5, end="failed")])
    found = pairs.compare_groups(groups)
    assert len(found.pairs) == 1
    assert found.excluded == [groups[2]]


def test_few_groups_meet_each_other_and_many_the_best(make: Make) -> None:
    groups = [seeds(make, 0.9 + at / 1000, 0.901 + at / 1000, lr=1e-3 * (at + 1))[0] for at in range(14)]
    few, many = pairs.compare_groups(groups[:4]), pairs.compare_groups(groups)
    assert (len(few.pairs), few.baseline, few.excluded) == (6, None, [])
    assert all(p.difference > 0 for p in few.pairs)  # the better one first
    assert many.baseline is groups[13]
    assert many.baseline_is_best
    assert [p.second for p in many.pairs] == [groups[13]] * 11
    assert many.excluded == [groups[0], groups[1]]


def test_p_values_are_adjusted_over_all_pairs(make: Make) -> None:
    groups = [
        seeds(make, *(0.9 + at / 500 + s / 1000 for s in range(3)), lr=1e-3 * (at + 1), test_images=300)[0]
        for at in range(3)
    ]
    found = pairs.compare_groups(groups).pairs
    assert [p.means_p_holm for p in found] == holm_adjust([p.welch.p for p in found if p.welch])
    assert [p.mcnemar.p_holm for p in found if p.mcnemar] == holm_adjust([p.mcnemar.p for p in found if p.mcnemar])
    assert any(p.welch is not None and p.means_p_holm > p.welch.p for p in found)


def test_a_baseline_is_named_by_its_row_or_by_a_runs_id(make: Make) -> None:
    runs = [make(0.9), make(0.91, lr=3e-3), make(0.92, lr=1e-2)]
    groups = group_runs(runs)
    for name in ("paper-b", runs[1].id, runs[1].id[:15]):
        found = pairs.compare_groups(groups, name)
        assert found.baseline is groups[1]
        assert not found.baseline_is_best
        assert [p.first for p in found.pairs] == [groups[2], groups[0]]


@pytest.mark.parametrize(
    ("name", "said"), [("nobody", "fits none of the rows"), ("2026", "fits 2 of the rows"), ("", "fits none")]
)
def test_a_baseline_that_is_no_row_is_refused(make: Make, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        pairs.compare_groups(group_runs([make(), make(lr=3e-3)]), name)


def test_an_unfinished_baseline_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match="none of its runs has finished"):
        pairs.compare_groups(group_runs([make(), make(lr=3e-3, done=2, end="failed")]), "paper-b")
