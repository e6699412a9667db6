"""Each image file becomes 8-bit RGB, upright; what was odd about it is told, and why a broken one is broken."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runyard.data.datasets import imagefolder
from runyard.data.datasets.imagefolder import BrokenImageError

RGB = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
GRAY16 = np.random.default_rng(1).integers(0, 65536, (24, 36)).astype(np.uint16)


def save(path: Path, mode: str = "RGB", **options: Any) -> Path:
    Image.fromarray(RGB).convert(mode).save(path, **options)
    return path


def png16(path: Path) -> Path:
    """A PNG of 16-bit RGB, which Pillow cannot write: the upper byte of each sample is RGB, the lower is 7."""
    rows = b"".join(b"\0" + np.stack([row, np.full_like(row, 7)], -1).tobytes() for row in RGB)
    head = struct.pack(">IIBBBBB", 36, 24, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return path


def test_a_plain_image_is_read_as_it_is(tmp_path: Path) -> None:
    image, odd = imagefolder.decode_image(save(tmp_path / "a.png"))
    np.testing.assert_array_equal(image, RGB)
    assert odd is None


@pytest.mark.parametrize(
    ("mode", "file", "kind"),
    [
        ("L", "a.png", "grayscale"),
        ("L", "a.jpg", "grayscale"),
        ("1", "a.png", "bilevel"),
        ("LA", "a.png", "grayscale with alpha"),
        ("P", "a.png", "palette"),
        ("RGBA", "a.png", "alpha"),
        ("CMYK", "a.jpg", "CMYK"),
        ("YCbCr", "a.tif", "YCbCr"),
    ],
)
def test_odd_kinds_are_told_and_converted_as_pillow_does(tmp_path: Path, mode: str, file: str, kind: str) -> None:
    image, odd = imagefolder.decode_image(save(tmp_path / file, mode))
    assert odd == kind
    with Image.open(tmp_path / file) as wanted:
        np.testing.assert_array_equal(image, np.asarray(wanted.convert("RGB")))


def test_sixteen_bits_become_their_upper_eight(tmp_path: Path) -> None:
    Image.fromarray(GRAY16).save(tmp_path / "gray.png")
    image, odd = imagefolder.decode_image(tmp_path / "gray.png")
    assert odd == "16-bit"
    np.testing.assert_array_equal(image, np.repeat((GRAY16 >> 8).astype(np.uint8)[..., None], 3, 2))
    image, odd = imagefolder.decode_image(png16(tmp_path / "colour.png"))
    assert odd == "16-bit"
    np.testing.assert_array_equal(image, RGB)


def test_a_palette_with_transparency_and_an_animation_are_read(tmp_path: Path) -> None:
    save(tmp_path / "p.png", "P", transparency=0)
    assert imagefolder.decode_image(tmp_path / "p.png")[1] == "palette"
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image, odd = imagefolder.decode_image(tmp_path / "a.gif")
    assert odd == "animation"
    assert image.shape == RGB.shape


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_says(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "a.png", exif=exif)
    wanted = RGB if orientation < 5 else RGB.transpose(1, 0, 2)  # then mirrored or turned, per the EXIF standard
    turn: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a,
        6: lambda a: a[:, ::-1],
        7: lambda a: a[::-1, ::-1],
        8: lambda a: a[::-1],
    }
    np.testing.assert_array_equal(imagefolder.decode_image(tmp_path / "a.png")[0], turn[orientation](wanted))


def broken(tmp_path: Path, name: str) -> Path:
    path = save(tmp_path / f"a.{'jpg' if 'JPEG' in name else 'png'}")
    content = path.read_bytes()
    if name == "missing":
        path.unlink()
    elif name == "dangling link":
        path.unlink()
        path.symlink_to("nowhere")
    elif name == "float":
        path = tmp_path / "a.tif"
        Image.fromarray(RGB[..., 0].astype(np.float32)).save(path)
    elif name == "too many pixels":
        head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
        path.write_bytes(content[:8] + chunk + content[33:])
    else:
        middle = len(content) // 2
        path.write_bytes(
            {
                "empty": b"",
                "text": b"no picture",
                "truncated JPEG": content[:middle],
                "truncated PNG": content[:middle],
                "head only": content[:40],
                "wrong CRC": content[:middle] + b"\xff\0\xff\0" + content[middle + 4 :],
            }[name]
        )
    return path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty", "an empty file"),
        ("text", "not an image"),
        ("truncated JPEG", "."),
        ("truncated PNG", "."),
        ("head only", "."),
        ("wrong CRC", "."),
        ("missing", "gone"),
        ("dangling link", "link"),
        ("float", "no known range"),
        ("too many pixels", "attack"),
    ],
)
def test_a_broken_file_is_told_with_its_reason(tmp_path: Path, name: str, reason: str) -> None:
    path = broken(tmp_path, name)
    with pytest.raises(BrokenImageError, match=reason) as error:
        imagefolder.decode_image(path)
    assert "\n" not in str(error.value)
    assert imagefolder.inspect_image(path, 16, None)[0] is None


@pytest.mark.parametrize("kind", ["FIFO", "device", "directory"])
def test_what_is_no_file_is_broken_by_its_kind_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    {"FIFO": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero"), "directory": path.mkdir}[kind]()
    assert imagefolder.inspect_image(path, 16, None)[1].problem in {
        "a FIFO (named pipe), not a regular file", "a device, not a regular file", "a directory, not a regular file",
    }  # fmt: skip


def test_an_image_that_ffcv_cannot_hold_is_broken_for_it(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 2)).save(tmp_path / "a.png")
    assert imagefolder.inspect_image(tmp_path / "a.png", 16, None)[1].problem is None
    assert "nothing would remain" in str(imagefolder.inspect_image(tmp_path / "a.png", 16, 64)[1].problem)
    Image.new("RGB", (66000, 2)).save(tmp_path / "b.png")
    assert "longer than 65535" in str(imagefolder.inspect_image(tmp_path / "b.png", 16, None)[1].problem)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(24, 36), (36, 24), (37, 53), (16, 16), (16, 90), (5, 7), (200, 101)])
def test_squares_are_those_of_torchvision(shape: tuple[int, int]) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)
    wanted = Compose([Resize(16), CenterCrop(16)])(Image.fromarray(image))
    np.testing.assert_array_equal(imagefolder.resize_and_crop(image, 16), np.asarray(wanted))
