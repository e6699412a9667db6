"""The sampler: which samples each step and rank gets, as a pure function of (seed, epoch); resuming only slices it.

The permutation of an epoch is cut into global batches, these into micro-batches, and these among the ranks. So a step
gets the same samples at any world size. Epochs and steps count from 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runyard.errors import UserError

Indices = npt.NDArray[np.int64]


def epoch_permutation(seed: int, epoch: int, samples: int) -> Indices:
    """Return the permutation of ``range(samples)`` for ``epoch``, int64 [samples].

    It sorts raw Philox words instead of calling ``Generator.permutation``: NumPy keeps only the raw stream stable
    across versions (NEP 19), and a run may be resumed with another version of NumPy.
    """
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(samples)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return the optimizer steps per epoch. Samples that do not fill a global batch are dropped."""
    if batch_size > samples:
        raise UserError(f"batch_size={batch_size}: expected at most the {samples} training images", "set a smaller one")
    return samples // batch_size


def rank_indices(
    order: Indices, step: int, batch_size: int, rank: int, world_size: int, accumulate: int
) -> list[Indices]:
    """Return this rank's samples in ``step``: ``accumulate`` arrays int64 [batch_size / (accumulate x world_size)].

    The arrays of all ranks for one micro-batch, joined in rank order, are that micro-batch. The joined micro-batches
    are the global batch ``order[step * batch_size : (step + 1) * batch_size]``.
    """
    if batch_size % (accumulate * world_size):
        raise ValueError(f"batch size {batch_size} does not divide by {accumulate} micro-batches x {world_size} ranks")
    shard_size = batch_size // (accumulate * world_size)
    rank_start = step * batch_size + rank * shard_size
    starts = range(rank_start, rank_start + batch_size, shard_size * world_size)
    return [order[start : start + shard_size] for start in starts]


def evaluation_indices(samples: int, rank: int, world_size: int) -> Indices:
    """Return this rank's contiguous shard of ``range(samples)``, int64. Each sample is on one rank; no padding."""
    return np.arange(samples * rank // world_size, samples * (rank + 1) // world_size, dtype=np.int64)
