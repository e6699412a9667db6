"""Plain .npy arrays as a source of images, for loader=torch and loader=resident."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from runyard.data.sampler import Indices
from runyard.errors import UserError
from runyard.files import duplicate_descriptor, open_regular

Pixels = npt.NDArray[np.uint8]
REBUILD_HINT = "delete its folder and run: runyard prepare"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Source(Protocol):
    """Decoded images of one split, by position. ``read`` may be called from several threads."""

    labels: Indices  # int64 [N]
    image_size: int  # side of an image, px

    def read(self, indices: Indices) -> tuple[Pixels, Indices]:
        """Return images uint8 [n, S, S, 3], and for each index its row in them, int64 [len(indices)]."""
        ...


class ArrayFile:
    """A ``.npy`` file that stays on disk and is read row by row, also from several threads at once.

    It is not memory-mapped: if a mapped file became shorter, SIGBUS would kill the process without an error message.

    Attributes:
        shape, dtype: Shape and dtype of the complete array.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
        ValueError: it is not a ``.npy`` file of plain numbers in C order, or it is truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_regular(path) as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f".npy of version {version}")
            self.shape, fortran, self.dtype = _HEADERS[version](file)
            if self.dtype.hasobject or not self.shape or (fortran and len(self.shape) > 1):
                raise ValueError("not an array of plain numbers in C order")
            self._start, self._row = file.tell(), self.dtype.itemsize * math.prod(self.shape[1:])
            self._bytes = self._start + self._row * self.shape[0]
            if (size := os.fstat(file.fileno()).st_size) < self._bytes:
                raise ValueError(f"{size} bytes, expected {self._bytes}")
            self._file = duplicate_descriptor(file, self)

    def __len__(self) -> int:
        return int(self.shape[0])

    def rows(self, indices: Indices | range) -> np.ndarray:
        """Return a new array of these rows, [len(indices), *shape[1:]].

        Raises:
            UserError: the file has become shorter.
        """
        out = np.empty((len(indices), *self.shape[1:]), self.dtype)
        flat = out.reshape(len(indices), -1).view(np.uint8)
        for row, index in enumerate(indices):
            if os.preadv(self._file, [flat[row]], self._start + self._row * int(index)) != self._row:
                raise truncated_error(self.path, self._bytes, os.fstat(self._file).st_size)
        return out


def load_npy(path: Path) -> np.ndarray:
    """Load a ``.npy`` file of plain numbers into memory.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
        ValueError: it is not a ``.npy`` file of plain numbers, or it is truncated.
    """
    with open_regular(path) as file:
        return np.load(file, allow_pickle=False)  # type: ignore[no-any-return]


def truncated_error(path: Path, expected: int, actual: int) -> UserError:
    """Return the error for a file that was truncated or overwritten while it was read. Sizes are in bytes."""
    return UserError(f"{path}: changed while it was read: {actual} bytes, and it had {expected}", REBUILD_HINT)


class ArraySource:
    """A ``Source`` of ``.npy`` files, which are loaded into memory or read from disk."""

    def __init__(self, images: Path, labels: Path, *, in_memory: bool) -> None:
        self._file = ArrayFile(images)
        self._in_memory: Pixels | None = load_npy(images) if in_memory else None
        self.labels: Indices = load_npy(labels)
        self.image_size = self._file.shape[1]

    def read(self, indices: Indices) -> tuple[Pixels, Indices]:
        if self._in_memory is not None:
            return self._in_memory, indices
        return self._file.rows(indices), np.arange(len(indices))
