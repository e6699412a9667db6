"""Prepared data: the settings of a small set, and the harm that a file can come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from runyard.config.schema import DataConfig, read_dataclass
from runyard.data import beton

SYNTHETIC: dict[str, Any] = {
    "name": "tiny",
    "kind": "synthetic",
    "root": "data",
    "sources": [],
    "path": None,
    "image_size": 16,
    "max_resolution": None,
    "write_mode": "raw",
    "jpeg_quality": None,
    "odd_images": "refuse",
    "broken_images": "refuse",
    "arrays": True,
    "validation_fraction": 0.0,
    "split_seed": 0,
    "samples": [300, 40],
    "num_classes": 4,
}


def data_config(**changes: Any) -> DataConfig:
    """The settings of a small synthetic set, with changes."""
    return read_dataclass(DataConfig, {**SYNTHETIC, **changes}, "data.")


def zero_labels(path: Path) -> None:
    """Set every label to 0: the structure and the size stay as they were."""
    content = bytearray(path.read_bytes())
    head = beton._HEADER.itemsize + 2 * beton._FIELD.itemsize
    records = np.frombuffer(content, beton._RECORD, beton.inspect_beton(path).samples, head)
    records["label"] = 0
    path.write_bytes(content)
