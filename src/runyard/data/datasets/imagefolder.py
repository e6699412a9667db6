"""Decodes the files of an image folder and checks that FFCV can store them; ``image_tree`` finds them."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runyard.files import open_regular

_MODES = {
    "1": "bilevel",
    "L": "grayscale",
    "LA": "grayscale with alpha",
    "La": "grayscale with alpha",
    "P": "palette",
    "PA": "palette with alpha",
    "RGBA": "alpha",
    "RGBa": "alpha",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
    "LAB": "LAB",
    "HSV": "HSV",
    "I;16": "16-bit",
    "I;16L": "16-bit",
    "I;16B": "16-bit",
    "I;16N": "16-bit",
    "I": "16-bit",
}
_LONGEST_SIDE = 65535  # FFCV keeps width and height in 16 bits


class BrokenImageError(Exception):
    """The file is not a complete image; the message says why."""


def decode_image(path: Path) -> tuple[np.ndarray, str | None]:
    """Return the image as uint8 [H, W, 3], rotated by its EXIF data, and its kind if it is not plain 8-bit RGB.

    Alpha is dropped, as in ``torchvision.datasets.ImageFolder``. Of 16 bits the upper 8 are used, and of an animation
    the first picture.

    Raises:
        BrokenImageError: not an image, empty, truncated, damaged, or of a kind whose range of values is not known.
    """
    from PIL import Image, ImageOps

    try:
        with open_regular(path) as file, Image.open(file) as image:
            conversion = _oddity(image)
            image.load()
            upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            values = np.asarray(upright).astype(np.int64)
            if values.min() < 0 or values.max() > 65535:
                raise BrokenImageError("32-bit pixels have no known range")
            return np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2), conversion
        if upright.mode == "P":
            upright = upright.convert("RGBA")  # the palette may have transparent colors
        return np.asarray(upright.convert("RGB")), conversion
    except FileNotFoundError:
        raise BrokenImageError("a link to a file that does not exist" if path.is_symlink() else "it is gone") from None
    except Image.UnidentifiedImageError:
        empty = path.stat().st_size == 0
        raise BrokenImageError("an empty file" if empty else "not an image") from None
    except Image.DecompressionBombError:
        raise BrokenImageError("too many pixels: it may be an attack that fills the memory") from None
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error, ArithmeticError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise BrokenImageError(error.strerror) from None
        raise BrokenImageError((str(error).splitlines() or [type(error).__name__])[0][:100]) from None


def _oddity(image: object) -> str | None:
    mode = getattr(image, "mode", "")
    tiles = getattr(image, "tile", None)
    raw_mode = str(tiles[0][3]) if tiles else ""
    if mode == "F":
        raise BrokenImageError("32-bit floating-point pixels have no known range")
    if getattr(image, "is_animated", False):
        return "animation"
    if "16" in raw_mode:
        return "16-bit"
    return None if mode == "RGB" else _MODES.get(mode, mode)


def decode_many(paths: Iterable[Path], transform: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """Decode these files, which were checked before, on all CPUs of this process, and apply ``transform`` to each."""
    with ThreadPoolExecutor(cpus()) as pool:
        return list(pool.map(lambda path: transform(decode_image(path)[0]), paths))


def cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def resize_and_crop(image: np.ndarray, side: int) -> np.ndarray:
    """Resize the shorter side of uint8 [H, W, 3] to ``side`` and crop the center, as torchvision does.

    Returns:
        uint8 [side, side, 3].
    """
    from PIL import Image

    height, width = image.shape[:2]
    short, long = min(height, width), max(height, width)
    if short != side:
        other = int(side * long / short)
        size = (side, other) if width <= height else (other, side)
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    height, width = image.shape[:2]
    top, left = round((height - side) / 2), round((width - side) / 2)
    return image[top : top + side, left : left + side]


@dataclass(frozen=True)
class ImageInspection:
    """What is known about an image file: the most bytes that FFCV stores for it, its odd kind, why it is broken."""

    stored_bytes: int
    conversion: str | None
    problem: str | None


def inspect_image(path: Path, side: int, max_resolution: int | None) -> tuple[np.ndarray | None, ImageInspection]:
    """Decode a file and check that FFCV can store it. Returns uint8 [side, side, 3], or None if it is broken."""
    try:
        image, conversion = decode_image(path)
        height, width = image.shape[:2]
        ratio = min(1.0, max_resolution / max(height, width)) if max_resolution else 1.0
        if int(ratio * min(height, width)) < 1:
            raise BrokenImageError(f"{width}x{height} px: nothing would remain at data.max_resolution={max_resolution}")
        if ratio * max(height, width) > _LONGEST_SIDE:
            raise BrokenImageError(f"{width}x{height} px: longer than {_LONGEST_SIDE}; set data.max_resolution")
        return resize_and_crop(image, side), ImageInspection(
            3 * int(ratio * height + 1) * int(ratio * width + 1), conversion, None
        )
    except BrokenImageError as error:
        return None, ImageInspection(0, None, str(error))


def printable_path(path: object) -> str:
    """Return a path as printable text in one line."""
    return repr(str(path))[1:-1]
