"""Which sample meets which step and rank: pure functions of (seed, epoch), so resuming is slicing, not replaying.

The global permutation is cut into global batches first, those into micro-batches, and these among the ranks last:
the same samples meet in the same step at any world size. Epochs and steps count from 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runyard.errors import UserError

Indices = npt.NDArray[np.int64]


def epoch_permutation(seed: int, epoch: int, samples: int) -> Indices:
    """The permutation of ``range(samples)`` that ``epoch`` goes through, int64 [samples].

    Sorted raw Philox words, not ``Generator.permutation``: NumPy keeps the raw stream stable across versions (NEP 19),
    and a run may go on under another NumPy than it began with.
    """
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(samples)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Optimiser steps in an epoch; the remainder that does not fill a global batch is dropped."""
    if batch_size > samples:
        raise UserError(f"batch_size={batch_size}: expected at most the {samples} training images; set a smaller one")
    return samples // batch_size


def rank_indices(
    order: Indices, step: int, batch_size: int, rank: int, world_size: int, accumulate: int
) -> list[Indices]:
    """This rank's samples in ``step``: ``accumulate`` arrays of batch_size / (accumulate x world_size) positions.

    The ranks' arrays of one micro-batch, joined in rank order, are that micro-batch; the micro-batches joined are the
    global batch ``order[step * batch_size : (step + 1) * batch_size]``.
    """
    if batch_size % (accumulate * world_size):
        raise ValueError(f"batch size {batch_size} does not divide by {accumulate} micro-batches x {world_size} ranks")
    share = batch_size // (accumulate * world_size)
    first = step * batch_size + rank * share
    starts = range(first, first + batch_size, share * world_size)
    return [order[start : start + share] for start in starts]


def evaluation_indices(samples: int, rank: int, world_size: int) -> Indices:
    """This rank's contiguous share of ``range(samples)``, int64: every sample on exactly one rank, none padded."""
    return np.arange(samples * rank // world_size, samples * (rank + 1) // world_size, dtype=np.int64)
