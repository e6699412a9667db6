"""The tests give what is published, and what counting by hand gives."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.special import stdtrit

from runyard.analysis.compare.statistics import holm_adjust, mcnemar, welch

# The two samples, their t = -2.46, df = 25.0 and P = 0.021 are a worked example often printed for Welch's test.
FIRST = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
SECOND = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]


TABLE = [(1, 12.706), (2, 4.303), (4, 2.776), (10, 2.228), (30, 2.042), (120, 1.980)]


@pytest.mark.parametrize(("df", "quantile"), TABLE)
def test_quantiles_are_those_of_the_printed_tables_of_students_t(df: int, quantile: float) -> None:
    assert stdtrit(df, 0.975) == pytest.approx(quantile, abs=0.0005)


def test_welch_gives_the_published_example() -> None:
    found = welch(FIRST, SECOND)
    assert found is not None
    assert found.df == pytest.approx(25.0, abs=0.05)
    assert found.p == pytest.approx(0.021, abs=0.0005)
    error = math.sqrt(np.var(FIRST, ddof=1) / 15 + np.var(SECOND, ddof=1) / 15)
    assert found.difference / error == pytest.approx(-2.46, abs=0.005)
    assert found.high - found.difference == pytest.approx(2.060 * error, rel=1e-3)  # t of 25 degrees in the tables


def test_welch_turned_round_is_its_mirror_image() -> None:
    one, other = welch(FIRST, SECOND), welch(SECOND, FIRST)
    assert one is not None
    assert other is not None
    assert (one.low, one.high, one.p) == pytest.approx((-other.high, -other.low, other.p))


@pytest.mark.parametrize(
    ("a", "b"),
    [([0.9], [0.8, 0.7]), ([0.9, 0.91], [0.8]), ([0.5, 0.5], [0.4, 0.4]), ([], []), ([0.913] * 3, [0.914] * 3)],
)  # of which NumPy's variance is not 0
def test_one_seed_or_no_spread_gives_no_interval(a: list[float], b: list[float]) -> None:
    assert welch(a, b) is None


def test_spread_on_one_side_is_enough_and_the_other_adds_none() -> None:
    found = welch([0.913] * 3, [0.914, 0.915, 0.916])
    assert found is not None
    assert found.df == 2
    assert found.low < found.difference < found.high


def test_nine_in_ten_and_a_half_intervals_cover_the_truth() -> None:
    random = np.random.default_rng(0)
    found = [welch(random.normal(0.3, 1, 3), random.normal(0, 2, 4)) for _ in range(4000)]
    covered = np.mean([w.low <= 0.3 <= w.high for w in found if w])
    assert covered == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("b", "c"), [(10, 2), (0, 5), (7, 7), (1, 0), (0, 0), (40, 61), (150, 86)])
def test_mcnemar_is_the_exact_binomial_summed_in_whole_numbers(b: int, c: int) -> None:
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    assert mcnemar(b, c) == pytest.approx(float(min(Fraction(1), Fraction(2 * tail, 2 ** (b + c)))), rel=1e-9)


def test_holm_gives_the_textbook_example_in_the_given_order() -> None:
    assert holm_adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjust([0.9, 0.8]) == [1.0, 1.0]
    assert holm_adjust([]) == []
