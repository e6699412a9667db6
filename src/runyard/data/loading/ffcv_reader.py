"""Reads FFCV files with FFCV's native decoders but without its Python ``Loader``; no other module uses FFCV to read.

The file is read through the page cache and decoded by FFCV's own C functions: TurboJPEG for JPEG, and OpenCV's area
resize after a center crop for images of other sizes. The result has the same bytes as that of its SimpleRGBImageDecoder
and CenterCropRGBImageDecoder(ratio=1). FFCV's ``Loader`` (1.0.2) is not used because of its problems: a reader thread
that dies silently while the consumer waits forever, orders that pad evaluation with duplicates, buffers that are
overwritten while in use, threads leaked by an early break (#345), a call to torch.set_num_threads, 3.7 s of imports in
every rank, and 1.1 s of compiling per loader that is never cached. Errors of TurboJPEG are raised. The file is not
memory-mapped: if a mapped file became shorter, SIGBUS would kill the process without an error message.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
import numpy as np
from numba import types

from runyard.data import beton
from runyard.data.arrays import REBUILD_HINT, Pixels, truncated_error
from runyard.data.compiled import jit
from runyard.data.sampler import Indices
from runyard.errors import UserError
from runyard.files import duplicate_descriptor, open_regular

# As declared in ffcv/libffcv/libffcv.cpp; names of our own, since LLVM looks symbols up in the whole process.
_U32 = types.uint32
_pread: Any = types.ExternalFunction("pread", types.int64(types.int32, types.uintp, types.uint64, types.int64))
_decode_jpg: Any = types.ExternalFunction(
    "runyard_ffcv_imdecode",
    types.int32(types.uintp, types.uint64, _U32, _U32, types.uintp, *[_U32] * 6, types.boolean, types.boolean),
)
_resize: Any = types.ExternalFunction("runyard_ffcv_resize", types.void(*[types.int64] * 11))

DECODE_OK, DECODE_DAMAGED, DECODE_WRONG_SIZE, DECODE_TRUNCATED = 0, 1, 2, 3  # results of ``decode_samples``


class BetonSource:
    """The images of one ``.beton`` file, by position. ``read`` may be called from several threads.

    Args:
        size: Side of the returned images, px. Stored images of another size are center-cropped and resized.
    """

    def __init__(self, path: Path, size: int) -> None:
        bind_decoders()
        self.image_size = size
        self._file = beton.inspect_beton(path)
        self.labels: Indices = self._file.labels
        with open_regular(path) as file:
            self._open = duplicate_descriptor(file, self)
        self._bytes = os.fstat(self._open).st_size
        self._largest = int((self._file.width * self._file.height).max()) * 3
        self._longest = int(self._file.sizes.max())

    def read(self, indices: Indices) -> tuple[Pixels, Indices]:
        """Decode the images into a new array uint8 [n, size, size, 3], in the order of ``indices``.

        Raises:
            UserError: the data of an image are damaged (the message gives its position), or the file became shorter.
        """
        f = self._file
        out = np.empty((len(indices), self.image_size, self.image_size, 3), np.uint8)
        position, status = decode_samples(
            self._open, indices, f.pointers, f.sizes, f.height, f.width, f.raw, self._largest, self._longest, out
        )
        if status == DECODE_TRUNCATED:
            raise truncated_error(f.path, self._bytes, os.fstat(self._open).st_size)
        if status != DECODE_OK:
            sample = int(indices[position])
            recorded = f"{f.width[sample]}x{f.height[sample]}"
            problem = (
                "is damaged" if status == DECODE_DAMAGED else f"does not have the {recorded} px that the file says"
            )
            raise UserError(f"{f.path}: the JPEG data of sample {sample} {problem}", REBUILD_HINT)
        return out, np.arange(len(indices))


@cache
def bind_decoders() -> None:
    """Make FFCV's C functions available to compiled code without importing the package, which takes seconds.

    Raises:
        UserError: FFCV is not installed, or its library cannot be loaded.
    """
    spec = find_spec("ffcv")
    folders = list(spec.submodule_search_locations or []) if spec else []
    libraries = [path for folder in folders for path in Path(folder).glob("_libffcv*.so")]
    if not libraries:
        raise UserError(
            "loader=ffcv: FFCV is not installed here", "install it (make setup), or set loader=torch or loader=resident"
        )
    try:
        library = ctypes.CDLL(str(libraries[0]))
    except OSError as error:
        raise UserError(
            f"loader=ffcv: {libraries[0].name} cannot be loaded ({error})",
            "install OpenCV and libturbojpeg, or set loader=torch or loader=resident",
        ) from None
    for name in ("imdecode", "resize"):
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        llvmlite.binding.add_symbol(f"runyard_ffcv_{name}", address)


@jit
def decode_samples(file, samples, pointers, sizes, heights, widths, raw, largest, longest, out):  # type: ignore[no-untyped-def]
    """Decode ``samples`` of the open ``file`` into out, uint8 [n, S, S, 3].

    Returns the position in ``samples`` of the first that could not be decoded, or -1, and its DECODE_* status.
    """
    side = out.shape[1]
    scratch, packed = np.empty(largest, np.uint8), np.empty(longest, np.uint8)
    for i in range(len(samples)):
        n = samples[i]
        size, height, width, target = sizes[n], heights[n], widths[n], out[i].ctypes.data
        same_size = height == side and width == side
        pixels = target if same_size else scratch.ctypes.data
        destination = pixels if raw[n] else packed.ctypes.data
        bytes_read = 0
        while bytes_read < size:
            count = _pread(file, destination + bytes_read, size - bytes_read, pointers[n] + bytes_read)
            if count <= 0:
                return i, DECODE_TRUNCATED
            bytes_read += count
        if not raw[n]:
            jpeg_height, jpeg_width = jpeg_size(packed, size)
            if jpeg_height == 0:
                return i, DECODE_DAMAGED
            if jpeg_height != height or jpeg_width != width:  # the decoder would fill only a part of the image
                return i, DECODE_WRONG_SIZE
            if _decode_jpg(destination, size, height, width, pixels, height, width, 0, 0, 1, 1, False, False) != 0:
                return i, DECODE_DAMAGED
        if not same_size:
            c = min(height, width)
            top, left = (height - c) // 2, (width - c) // 2
            _resize(0, pixels, height, width, top, top + c, left, left + c, target, side, side)
    return -1, DECODE_OK


@jit
def jpeg_size(data, size):  # type: ignore[no-untyped-def]
    """Return height and width from the frame header of a JPEG of ``size`` bytes (ITU T.81, B.2.2); 0, 0 without one."""
    position = 2
    while position + 9 <= size and data[0] == 0xFF and data[1] == 0xD8 and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill bytes may come before a marker
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            return np.int64(data[position + 5]) << 8 | data[position + 6], np.int64(data[position + 7]) << 8 | data[
                position + 8
            ]
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # these have no length
            position += 2
        elif marker == 0xDA:
            break
        else:
            position += 2 + (np.int64(data[position + 2]) << 8 | data[position + 3])
    return np.int64(0), np.int64(0)
