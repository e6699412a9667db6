"""The one place that touches FFCV when reading: its file format and its native decoders, driven by threads of ours.

FFCV's file is mapped (as its ``os_cache=True`` does) and decoded by its own C functions: memcpy for raw pixels,
TurboJPEG for JPEG, OpenCV's area resize after a centre crop for images of other sizes: byte for byte what its
SimpleRGBImageDecoder and CenterCropRGBImageDecoder(ratio=1) do. Its Python ``Loader`` (1.0.2) is left aside, and so is
a reader thread that dies unheard and leaves the consumer waiting for ever, orders that pad evaluation with duplicates,
buffers that are overwritten while in use, threads leaked by an early break (#345), a call to torch.set_num_threads,
3.7 s of imports in every rank, and 1.1 s of compiling per loader that no cache keeps. TurboJPEG's errors are raised.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
import numpy as np
from numba import types

from runyard.data import beton
from runyard.data.arrays import Pixels
from runyard.data.compiled import compiled
from runyard.data.order import Indices
from runyard.errors import UserError

# as declared in ffcv/libffcv/libffcv.cpp; named apart, since LLVM looks symbols up in the whole process
_U32 = types.uint32
_copy: Any = types.ExternalFunction("runyard_ffcv_copy", types.void(types.uintp, types.uintp, types.uint64))
_decode_jpg: Any = types.ExternalFunction("runyard_ffcv_imdecode", types.int32(
    types.uintp, types.uint64, _U32, _U32, types.uintp, _U32, _U32, _U32, _U32, _U32, _U32, types.boolean,
    types.boolean))
_resize: Any = types.ExternalFunction("runyard_ffcv_resize", types.void(*[types.int64] * 11))


class BetonSource:
    """The images of one ``.beton`` file, by position; ``read`` may be called from several threads.

    Args:
        size: side of the images handed out, px. Stored images of another size are centre-cropped and resized.
    """

    def __init__(self, path: Path, size: int) -> None:
        bind_decoders()
        self.size = size
        self._file = beton.inspect(path)
        self.labels: Indices = self._file.labels
        # copy-on-write, though nobody writes: kernels are compiled for writable arrays
        self._memory = np.asarray(np.memmap(path, np.uint8, mode="c"))
        self._largest = int((self._file.width * self._file.height).max()) * 3

    def read(self, indices: Indices) -> tuple[Pixels, Indices]:
        """Decode into a fresh array uint8 [n, size, size, 3].

        Raises:
            UserError: an image whose JPEG data is damaged, named by its position.
        """
        f = self._file
        out = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        broken = decode(self._memory, indices, f.pointers, f.sizes, f.height, f.width, f.raw, self._largest, out)
        if broken >= 0:
            raise UserError(f"{f.path}: the JPEG data of sample {indices[broken]} is damaged; "
                            "delete the file and run: runyard prepare")
        return out, np.arange(len(indices))


@cache
def bind_decoders() -> None:
    """Make FFCV's C functions known to compiled code, without importing the package: that takes seconds.

    Raises:
        UserError: FFCV is not installed.
    """
    spec = find_spec("ffcv")
    folders = list(spec.submodule_search_locations or []) if spec else []
    libraries = [path for folder in folders for path in Path(folder).glob("_libffcv*.so")]
    if not libraries:
        raise UserError("loader=ffcv: FFCV is not installed here; install it (make setup), "
                        "or set loader=torch or loader=resident")
    try:
        library = ctypes.CDLL(str(libraries[0]))
    except OSError as error:
        raise UserError(f"loader=ffcv: {libraries[0].name} cannot be loaded ({error}); install OpenCV and "
                        "libturbojpeg, or set loader=torch or loader=resident") from None
    for ours, theirs in (("copy", "my_memcpy"), ("imdecode", "imdecode"), ("resize", "resize")):
        address = ctypes.cast(getattr(library, theirs), ctypes.c_void_p).value
        llvmlite.binding.add_symbol(f"runyard_ffcv_{ours}", address)


@compiled
def decode(memory, samples, pointers, sizes, heights, widths, raw, largest, out):  # type: ignore[no-untyped-def]
    """Decode ``samples`` into out, uint8 [n, S, S, 3]; the place in ``samples`` of the first that is damaged, or -1."""
    side = out.shape[1]
    base = memory.ctypes.data
    scratch = np.empty(largest, np.uint8)
    for i in range(len(samples)):
        n = samples[i]
        pixels, target, height, width = base + pointers[n], out[i].ctypes.data, heights[n], widths[n]
        fits = height == side and width == side
        if raw[n] and fits:
            _copy(pixels, target, sizes[n])
            continue
        if not raw[n]:
            plain = target if fits else scratch.ctypes.data
            if _decode_jpg(pixels, sizes[n], height, width, plain, height, width, 0, 0, 1, 1, False, False) != 0:
                return i
            pixels = plain
        if not fits:
            c = min(height, width)
            top, left = (height - c) // 2, (width - c) // 2
            _resize(0, pixels, height, width, top, top + c, left, left + c, target, side, side)
    return -1
