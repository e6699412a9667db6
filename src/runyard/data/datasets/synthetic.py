"""Made-up images that can be learned: one smooth pattern per class, shifted and under noise. For tests and dry runs."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator, Philox

_CELLS, _CHUNK = 4, 1024


def class_names(num_classes: int) -> tuple[str, ...]:
    """Their names."""
    width = len(str(num_classes - 1))
    return tuple(f"class {i:0{width}d}" for i in range(num_classes))


def make_split(split: str, samples: int, num_classes: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``split`` ("train" or "test") of the set, always the same for the same arguments.

    Returns:
        images uint8 [samples, size, size, 3] and labels int64 [samples], the classes as even as can be.
    """
    patterns = Generator(Philox(key=[0, num_classes])).normal(size=(num_classes, _CELLS, _CELLS, 3)).astype(np.float32)
    random = Generator(Philox(key=[1 + ("train", "test").index(split), num_classes]))
    labels = random.permutation(np.arange(samples, dtype=np.int64) % num_classes)
    place = np.arange(size) * _CELLS / size  # bilinear between cells, round the edges
    low, share = place.astype(int), (place % 1).astype(np.float32)
    weights = np.zeros((size, _CELLS), np.float32)
    np.add.at(weights, (np.arange(size), low), 1 - share)
    np.add.at(weights, (np.arange(size), (low + 1) % _CELLS), share)
    smooth = np.einsum("yi,xj,cijk->cyxk", weights, weights, patterns)
    images = np.empty((samples, size, size, 3), np.uint8)
    for start in range(0, samples, _CHUNK):
        own = labels[start : start + _CHUNK]
        shift = random.integers(-(size // 8), size // 8 + 1, size=(len(own), 2))
        rows = (np.arange(size) + shift[:, :1]) % size
        columns = (np.arange(size) + shift[:, 1:]) % size
        clean = smooth[own[:, None, None], rows[:, :, None], columns[:, None, :]]
        noise = random.normal(size=clean.shape).astype(np.float32)
        images[start : start + _CHUNK] = np.clip(128 + 40 * clean + 30 * noise, 0, 255).astype(np.uint8)
    return images, labels
