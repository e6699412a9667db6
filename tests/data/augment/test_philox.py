"""The counter-based generator and what is drawn from it."""

from itertools import pairwise

import numpy as np
import pytest

from runyard.data.augment import kernels, params
from runyard.data.augment.params import AugmentDraws, AugmentParams
from runyard.data.augment.philox import philox
from runyard.data.compiled import jit

ALL = AugmentParams(
    flip=params.RANDOM_FLIP,
    padding=4,
    reflect=False,
    rotation=0.25,
    bilinear=False,
    brightness=0.2,
    contrast=0.3,
    saturation=0.4,
    hue=0.1,
    cutout=8,
    size=32,
    fill_r=0,
    fill_g=0,
    fill_b=0,
)
# Random123 1.14, tests/kat_vectors: counter, key, result of philox4x32 with 10 rounds
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN, ids=["zeros", "ones", "pi"])
def test_philox_gives_the_published_words(counter: str, key: str, result: str) -> None:
    @jit
    def machine_code(c, k):  # type: ignore[no-untyped-def]
        return philox(c[0], c[1], c[2], c[3], k[0], k[1])

    assert list(philox(*words(counter), *words(key))) == words(result)
    assert list(machine_code(np.array(words(counter)), np.array(words(key)))) == words(result)


def table(seed: int = 1, epoch: int = 0, n: int = 4096, s: AugmentParams = ALL, first: int = 0) -> AugmentDraws:
    return AugmentDraws(*kernels.draw_params_all(np.arange(first, first + n), seed, epoch, s))


def test_compiled_draws_are_those_of_the_python_text() -> None:
    for seed, epoch, sample in ((0, 0, 0), (1, 2, 3), (2**63 - 1, 10_000, 2**33 + 5)):
        wanted = [float(value) for value in params.draw_params(seed, epoch, sample, ALL)]
        assert kernels.draw_params_all(np.array([sample]), seed, epoch, ALL)[:, 0].tolist() == wanted


@pytest.mark.parametrize(
    "other",
    [{"seed": 2}, {"seed": 1 + 2**40}, {"epoch": 1}, {"first": 1}],
    ids=["seed", "upper half of the seed", "epoch", "sample"],
)
def test_another_seed_epoch_or_sample_draws_otherwise(other: dict[str, int]) -> None:
    for name, a, b in zip(AugmentDraws._fields, table(), table(**other), strict=True):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.06, name  # 4 standard errors of unrelated draws


def test_draws_of_one_image_are_unrelated_to_each_other() -> None:
    related = np.corrcoef(np.stack(table())) - np.eye(len(AugmentDraws._fields))
    assert np.abs(related).max() < 0.08


def test_draws_fill_their_ranges_evenly() -> None:
    d = table(n=20_000)
    for values, low, high in (
        (d.angle, -0.25, 0.25),
        (d.brightness, 0.8, 1.2),
        (d.contrast, 0.7, 1.3),
        (d.saturation, 0.6, 1.4),
        (d.hue, -0.1, 0.1),
    ):
        assert low <= values.min() < values.max() < high
        counts = np.histogram(values, 10, (low, high))[0]
        assert np.abs(counts - 2000).max() < 5 * 2000**0.5
    for values, n in (
        (d.flip, 2),
        (d.crop_y, 9),
        (d.crop_x, 9),
        (d.order, 24),
        (d.cutout_y + 4, 32),
        (d.cutout_x + 4, 32),
    ):
        counts = np.bincount(values.astype(int))
        assert len(counts) == n
        assert np.abs(counts - 20_000 / n).max() < 5 * (20_000 / n) ** 0.5


def test_alternating_flip_is_random_at_first_and_turns_each_image_over_every_epoch() -> None:
    s = ALL._replace(flip=params.ALTERNATING_FLIP)
    flips = [table(epoch=epoch, s=s).flip for epoch in range(4)]
    assert 0.45 < flips[0].mean() < 0.55
    for before, after in pairwise(flips):
        np.testing.assert_array_equal(after, 1 - before)
    assert not np.array_equal(table(epoch=1).flip, 1 - table(epoch=0).flip)  # flip=random does no such thing
