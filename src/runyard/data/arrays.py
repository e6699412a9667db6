"""Plain arrays as a source of images: what loader=torch and loader=resident read."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from runyard.data.order import Indices

Pixels = npt.NDArray[np.uint8]


class Source(Protocol):
    """Decoded images of one split, by position. Safe to read from several threads."""

    labels: Indices  # int64 [N]
    size: int  # side of an image, px

    def read(self, indices: Indices) -> tuple[Pixels, Indices]:
        """An array uint8 [n, S, S, 3] and the row of each index in it."""
        ...


class ArraySource:
    """``.npy`` files, held in memory or mapped."""

    def __init__(self, images: Path, labels: Path, *, in_memory: bool) -> None:
        # mapped copy-on-write, though nobody writes: kernels are compiled for writable arrays
        self.images: Pixels = np.asarray(np.load(images, mmap_mode=None if in_memory else "c", allow_pickle=False))
        self.labels: Indices = np.load(labels, allow_pickle=False)
        self.size = self.images.shape[1]

    def read(self, indices: Indices) -> tuple[Pixels, Indices]:
        return self.images, indices
