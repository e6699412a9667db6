"""The sample order: a pure function, cut into global batches first and among ranks last."""

import numpy as np
import pytest

from runyard.data.sampler import epoch_permutation, evaluation_indices, rank_indices, steps_per_epoch
from runyard.errors import UserError


def test_an_epoch_visits_every_sample_once() -> None:
    np.testing.assert_array_equal(np.sort(epoch_permutation(3, 7, 1001)), np.arange(1001))


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    np.testing.assert_array_equal(epoch_permutation(3, 7, 100), epoch_permutation(3, 7, 100))
    for other in (epoch_permutation(4, 7, 100), epoch_permutation(3, 8, 100), epoch_permutation(2**62, 7, 100)):
        assert (other != epoch_permutation(3, 7, 100)).mean() > 0.8


def test_order_stays_the_same_across_versions_of_numpy_and_of_this_program() -> None:
    assert epoch_permutation(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_joined_give_the_global_batch_at_any_world_size(world_size: int, accumulate: int) -> None:
    order = epoch_permutation(0, 0, 200)
    for step in range(steps_per_epoch(200, 48)):
        shares = [rank_indices(order, step, 48, rank, world_size, accumulate) for rank in range(world_size)]
        micro_batches = [np.concatenate(parts) for parts in zip(*shares, strict=True)]
        assert len(micro_batches) == accumulate
        np.testing.assert_array_equal(np.concatenate(micro_batches), order[step * 48 : (step + 1) * 48])


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        rank_indices(np.arange(100), 0, 10, 0, 4, 1)


def test_the_remainder_of_an_epoch_is_dropped_and_a_batch_beyond_the_set_refused() -> None:
    assert steps_per_epoch(50_000, 128) == 390
    with pytest.raises(UserError, match="batch_size=128: expected at most the 100 training images"):
        steps_per_epoch(100, 128)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("samples", [10, 103])
def test_evaluation_gives_every_sample_to_exactly_one_rank(samples: int, world_size: int) -> None:
    shares = [evaluation_indices(samples, rank, world_size) for rank in range(world_size)]
    np.testing.assert_array_equal(np.concatenate(shares), np.arange(samples))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_padding_to_equal_shares_would_be_noticed() -> None:
    shares = [np.arange(103)[rank::4] for rank in range(4)]
    padded = [np.resize(share, 26) for share in shares]  # what DistributedSampler(drop_last=False) does
    assert len(np.concatenate(padded)) != 103
