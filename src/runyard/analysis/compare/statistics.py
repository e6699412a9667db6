"""Statistical tests of whether a difference is more than chance. The distributions are SciPy's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, stdtr, stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Welch:
    """Difference of two means, first minus second, its confidence interval, and the two-sided p of no difference."""

    difference: float
    low: float
    high: float
    df: float
    p: float


def welch(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> Welch | None:
    """Welch's t-test for the means of independent values with unequal variances (Welch 1947; df after Satterthwaite).

    Returns None if it is impossible: fewer than two values on a side, or no spread at all.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if len(a) < 2 or len(b) < 2:
        return None
    va, vb = (
        x.var(ddof=1) / len(x) if np.ptp(x) else 0.0 for x in (a, b)
    )  # the computed variance of equal floats is not quite 0
    if va + vb == 0:
        return None
    difference, error = float(a.mean() - b.mean()), math.sqrt(va + vb)
    df = float((va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)))
    half = float(stdtrit(df, (1 + CONFIDENCE) / 2)) * error
    p = 2 * float(stdtr(df, -abs(difference) / error))
    return Welch(difference, difference - half, difference + half, df, p)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p of McNemar's test on counts of images that one network alone classified correctly.

    By chance each network has half of these images. The binomial is summed exactly at any count (McNemar 1947), so
    that no continuity correction is needed.
    """
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def holm_adjust(ps: Sequence[float]) -> list[float]:
    """Return the p values of several tests, adjusted to keep the probability of any false alarm (Holm 1979)."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, ps[index] * (len(ps) - rank)))
        adjusted[index] = largest
    return adjusted
