"""A file that FFCV did not finish, or that is no longer what it wrote, is refused before anything reads it."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runyard.data import beton
from runyard.errors import UserError

HEADER, RECORDS, RECORD, ALLOCATION = 24, 24 + 2 * 1041, 24, 24
SAMPLES = 300


def table(content: bytes) -> int:
    return int(struct.unpack_from("<Q", content, 16)[0])


def put(content: bytes, place: int, form: str, value: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(form, changed, place, value)
    return bytes(changed)


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda c: b"", "empty"),
    "a few bytes": (lambda c: c[:10], "too few"),
    "the header alone": (lambda c: c[:HEADER], "truncated"),
    "half": (lambda c: c[: len(c) // 2], "truncated"),
    "a byte short": (lambda c: c[:-1], "truncated"),
    "a byte more": (lambda c: c + b"\0", "damaged"),
    "the writer was interrupted": (lambda c: put(c, 16, "<Q", 0), "interrupted"),
    "a picture": (lambda c: b"\x89PNG\r\n\x1a\n" + c[8:], "not an FFCV file"),
    "text": (lambda c: b"label,image\n" * 500, "not an FFCV file"),
    "zeros": (lambda c: bytes(len(c)), "not an FFCV file"),
    "another version": (lambda c: put(c, 0, "<H", 3), "not an FFCV file"),
    "another field": (lambda c: put(c, HEADER, "<B", 4), "fields image"),
    "another name": (lambda c: put(c, HEADER + 1, "<B", ord("I")), "fields image"),
    "no samples": (lambda c: put(c, 8, "<Q", 0), "is impossible"),
    "fewer samples": (lambda c: put(c, 8, "<Q", SAMPLES - 1), "damaged"),
    "more samples": (lambda c: put(c, 8, "<Q", 2**60), "is impossible"),
    "a pointer elsewhere": (lambda c: put(c, RECORDS + 5 * RECORD + 5, "<Q", 77), "sample 5 has another position"),
    "a pointer outside": (
        lambda c: put(put(c, RECORDS + 5, "<Q", 2**63), table(c) + 8, "<Q", 2**63),
        "position outside",
    ),
    "a size outside": (lambda c: put(c, table(c) + 16, "<Q", 2**63), "sample 0 has a position outside"),
    "a sample twice": (lambda c: put(c, table(c) + ALLOCATION, "<Q", 0), "not in the allocation table exactly once"),
    "an unknown encoding": (lambda c: put(c, RECORDS, "<B", 9), "no known encoding"),
    "no width": (lambda c: put(c, RECORDS + 1, "<H", 0), "no size"),
    "another width": (lambda c: put(c, RECORDS + 1, "<H", 17), "another number of bytes"),
}


def test_a_sound_file_gives_its_samples(prepared_root: Path, folder: Path) -> None:
    content = beton.inspect_beton(folder / "train.beton")
    images, labels = np.load(folder / "train_images.npy"), np.load(folder / "train_labels.npy")
    assert content.samples == len(images) == SAMPLES
    assert content.square(16)
    assert not content.square(17)
    np.testing.assert_array_equal(content.labels, labels)
    stored = (folder / "train.beton").read_bytes()
    for image, start, size in zip(images, content.pointers, content.sizes, strict=True):
        assert stored[start : start + size] == image.tobytes()


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(folder: Path, name: str) -> None:
    damage, word = DAMAGE[name]
    path = folder / "train.beton"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=word) as error:
        beton.inspect_beton(path)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).endswith("run: runyard prepare")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["nowhere.beton", "."])
def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="cannot read it"):
        beton.inspect_beton(tmp_path / path)


@pytest.mark.slow
def test_ffcvs_own_reader_takes_what_is_refused_here(folder: Path) -> None:
    """The control: were FFCV to notice a truncated or unfinished file by itself, this module would not be needed."""
    from ffcv.reader import Reader

    path = folder / "train.beton"
    whole = path.read_bytes()
    path.write_bytes(whole[: table(whole) + 50 * ALLOCATION])
    assert len(Reader(str(path)).alloc_table) == 50
    path.write_bytes(put(whole, 16, "<Q", 0))
    assert len(Reader(str(path)).alloc_table) != SAMPLES
