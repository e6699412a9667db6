"""Checks the structure of an FFCV file without FFCV, whose own reader returns garbage for incomplete files.

The layout is that of ffcv 1.0.2, ``ffcv/types.py``: header, field descriptors, one metadata record per sample, data
pages, and at the end the allocation table. Its position is written into the header last.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from runyard.data.arrays import REBUILD_HINT
from runyard.errors import UserError
from runyard.files import open_regular

_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
_FIELD = np.dtype([("type_id", "<u1"), ("name", "S16"), ("arguments", "<u1", (1024,))])
_RECORD = np.dtype(  # RGBImageField, then IntField aligned to 8 bytes
    {
        "names": ["mode", "width", "height", "data_ptr", "label"],
        "formats": ["<u1", "<u2", "<u2", "<u8", "<i8"],
        "offsets": [0, 1, 3, 5, 16],
        "itemsize": 24,
    }
)
_ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_JPG, _RAW = 0, 1
_VERSION, _FIELDS = 2, [(2, b"image"), (1, b"label")]


@dataclass(frozen=True)
class Beton:
    """The sample records of a valid FFCV file, in order.

    Attributes:
        width, height: int64 [N], px.
        raw: bool [N], True for raw pixels, False for JPEG.
        pointers, sizes: int64 [N], position and length of each image's bytes in the file.
        labels: int64 [N].
    """

    path: Path
    width: np.ndarray
    height: np.ndarray
    raw: np.ndarray
    pointers: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray

    @property
    def samples(self) -> int:
        return len(self.labels)

    def square(self, side: int) -> bool:
        """Return whether every image is exactly ``side`` x ``side`` px."""
        return bool((self.width == side).all() and (self.height == side).all())


def inspect_beton(path: Path) -> Beton:
    """Read and check the structure of an FFCV file with an ``image`` and a ``label`` field. No pixels are read.

    Raises:
        UserError: the file is missing, unreadable, empty, truncated, of another kind, or was not finished.
    """
    try:
        with open_regular(path) as f:
            end = f.seek(0, 2)
            f.seek(0)
            return _parse(path, f, f.read(_HEADER.itemsize + len(_FIELDS) * _FIELD.itemsize), end)
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror}); expected an FFCV file", REBUILD_HINT) from None


def _parse(path: Path, file: BinaryIO, head: bytes, file_bytes: int) -> Beton:
    def refuse(problem: str) -> UserError:
        return UserError(f"{path}: {problem}", REBUILD_HINT)

    if file_bytes == 0:
        raise refuse("the file is empty, expected an FFCV file")
    if len(head) < _HEADER.itemsize:
        raise refuse(f"{file_bytes} bytes are too few for an FFCV file")
    header = np.frombuffer(head, _HEADER, 1)[0]
    samples, table, page = int(header["num_samples"]), int(header["alloc_table_ptr"]), int(header["page_size"])
    if header["version"] != _VERSION or header["num_fields"] != len(_FIELDS) or page < 1 << 21 or page & (page - 1):
        raise refuse(f"not an FFCV file of version {_VERSION} with the fields image and label")
    if len(head) < _HEADER.itemsize + len(_FIELDS) * _FIELD.itemsize:
        raise refuse(f"truncated: {file_bytes} bytes end inside the header")
    fields = np.frombuffer(head, _FIELD, offset=_HEADER.itemsize)
    if [(int(f["type_id"]), bytes(f["name"])) for f in fields] != _FIELDS:
        raise refuse("not an FFCV file with the fields image (RGB) and label (int), in this order")
    if table == 0:
        raise refuse("unfinished: its writer was interrupted (the header names no allocation table)")
    records_end = len(head) + samples * _RECORD.itemsize
    expected_bytes = table + samples * _ALLOCATION.itemsize
    if samples == 0 or records_end > table:
        raise refuse(f"damaged: the header says {samples} samples and a table at byte {table}, which is impossible")
    if expected_bytes != file_bytes:
        raise refuse(
            f"truncated: {file_bytes} bytes, expected {expected_bytes}"
            if file_bytes < expected_bytes
            else f"damaged: {file_bytes} bytes, expected {expected_bytes} for {samples} samples"
        )
    file.seek(len(head))
    records = np.fromfile(file, _RECORD, samples)
    file.seek(table)
    allocations = np.fromfile(file, _ALLOCATION, samples)
    if len(records) != samples or len(allocations) != samples:
        raise refuse("it became shorter while it was read")
    allocations = allocations[np.argsort(allocations["sample_id"], kind="stable")]
    pointers, sizes = allocations["ptr"], allocations["size"]
    area = records["width"].astype(np.uint64) * records["height"] * np.uint64(3)
    raw = records["mode"] == _RAW
    outside = (pointers < records_end) | (pointers > table) | (sizes > table) | (pointers + sizes > table)
    for invalid, problem in (
        (allocations["sample_id"] != np.arange(samples), "is not in the allocation table exactly once"),
        (pointers != records["data_ptr"], "has another position than in the allocation table"),
        (outside, "has a position outside of the data"),
        ((records["mode"] > _RAW) | (area == 0), "has no known encoding or no size"),
        (raw & (sizes != area), "has another number of bytes than its width and height need"),
    ):
        if invalid.any():
            raise refuse(f"damaged: sample {int(np.argmax(invalid))} {problem}")
    return Beton(
        path,
        records["width"].astype(np.int64),
        records["height"].astype(np.int64),
        raw,
        pointers.astype(np.int64),
        sizes.astype(np.int64),
        records["label"].astype(np.int64),
    )
