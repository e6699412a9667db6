"""A small prepared set, written once, and a configuration that reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runyard.config.schema import Config
from runyard.data.manifest import Manifest, Split
from tests.support.loading import SIZE, TEST, TRAIN, MakeConfig, write_beton


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Path]:
    folder, rng, splits = tmp_path_factory.mktemp("prepared"), np.random.default_rng(0), {}
    for name, n in (("train", TRAIN), ("test", TEST)):
        images, labels = rng.integers(0, 256, (n, SIZE, SIZE, 3), np.uint8), rng.integers(0, 10, n)
        np.save(folder / f"{name}_images.npy", images)
        np.save(folder / f"{name}_labels.npy", labels)
        write_beton(folder / f"{name}.beton", list(images), labels)
        splits[name] = Split(n, f"{name}.beton", "", 0, f"{name}_images.npy", f"{name}_labels.npy", {})
    return Manifest(
        "small", "synthetic", "a test", tuple("abcdefghij"), SIZE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), splits, {}, True
    ), folder


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    return make_config(
        "data=synthetic",
        f"data.image_size={SIZE}",
        "augment=paper",
        "augment.cutout_px=4",
        "loader=resident",
        "batch_size=96",
        "eval_batch_size=5",
        "seed=11",
        "workers=1",
    )
