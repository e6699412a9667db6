"""Synthetic images for tests and dry runs: one smooth pattern per class, shifted, with noise. They can be learned."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator, Philox

_CELLS, _CHUNK = 4, 1024


def class_names(num_classes: int) -> tuple[str, ...]:
    """Return the class names, such as "class 07"."""
    width = len(str(num_classes - 1))
    return tuple(f"class {i:0{width}d}" for i in range(num_classes))


def make_split(split: str, samples: int, num_classes: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``split`` ("train" or "test") of the data set, always the same for the same arguments.

    Returns:
        Images uint8 [samples, size, size, 3] and labels int64 [samples], with classes as balanced as possible.
    """
    patterns = Generator(Philox(key=[0, num_classes])).normal(size=(num_classes, _CELLS, _CELLS, 3)).astype(np.float32)
    generator = Generator(Philox(key=[1 + ("train", "test").index(split), num_classes]))
    labels = generator.permutation(np.arange(samples, dtype=np.int64) % num_classes)
    position = np.arange(size) * _CELLS / size  # bilinear between cells, wrapping around at the edges
    low, fraction = position.astype(int), (position % 1).astype(np.float32)
    weights = np.zeros((size, _CELLS), np.float32)
    np.add.at(weights, (np.arange(size), low), 1 - fraction)
    np.add.at(weights, (np.arange(size), (low + 1) % _CELLS), fraction)
    smooth = np.einsum("yi,xj,cijk->cyxk", weights, weights, patterns)
    images = np.empty((samples, size, size, 3), np.uint8)
    for start in range(0, samples, _CHUNK):
        chunk_labels = labels[start : start + _CHUNK]
        shift = generator.integers(-(size // 8), size // 8 + 1, size=(len(chunk_labels), 2))
        rows = (np.arange(size) + shift[:, :1]) % size
        columns = (np.arange(size) + shift[:, 1:]) % size
        clean = smooth[chunk_labels[:, None, None], rows[:, :, None], columns[:, None, :]]
        noise = generator.normal(size=clean.shape).astype(np.float32)
        images[start : start + _CHUNK] = np.clip(128 + 40 * clean + 30 * noise, 0, 255).astype(np.uint8)
    return images, labels
