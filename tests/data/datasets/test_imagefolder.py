"""Any tree of image files can be prepared; what is odd or broken is converted, left out, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runyard.config.schema import DataConfig
from runyard.data import beton, manifest
from runyard.data.datasets import imagefolder
from runyard.data.prepare import gather
from runyard.data.prepare.pipeline import prepare_dataset
from runyard.errors import UserError

Settings = Callable[..., DataConfig]
RGB = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)


def save(path: Path, mode: str = "RGB", **options: Any) -> Path:
    Image.fromarray(RGB).convert(mode).save(path, **options)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """train/{ant,zebra} with 8 images each and val/ with 3 each, of different sizes."""
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for name in ("zebra", "ant"):
            folder = tmp_path / "tree" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                size = (*random.integers(24, 90, 2), 3)
                Image.fromarray(random.integers(0, 256, size, np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "tree"


def folder_config(settings: Settings, tree: Path, **changes: Any) -> DataConfig:
    return settings(
        **{
            "kind": "imagefolder",
            "name": "animals",
            "sources": ["disk"],
            "path": str(tree),
            "samples": None,
            "num_classes": None,
            "root": str(tree.parent / "data"),
            **changes,
        }
    )


def gathered(data: DataConfig, tmp_path: Path) -> gather.DatasetLayout:
    work = tmp_path / "work"
    (work / "sources").mkdir(parents=True)
    return gather.layout_tree(data, work, work / "sources", lambda what, done, total: None)


def test_odd_and_broken_files_are_refused_by_name(tree: Path, settings: Settings) -> None:
    save(tree / "train/ant/gray.png", "L")
    (tree / "train/zebra/bad\nname.jpg").write_bytes(b"")
    said = r"1 broken or not images: train/zebra/bad\\nname\.jpg \(an empty file\).*=skip"
    with pytest.raises(UserError, match=said) as error:
        prepare_dataset(folder_config(settings, tree), progress=False)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"1 not plain 8-bit RGB: train/ant/gray\.png \(grayscale\).*=convert"):
        prepare_dataset(folder_config(settings, tree, broken_images="skip"), progress=False)
    assert not [p for p in (tree.parent / "data").iterdir() if p.suffix != ".lock"]


def test_a_class_of_which_nothing_is_whole_is_refused(tree: Path, settings: Settings, tmp_path: Path) -> None:
    for file in (tree / "train/ant").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match="a class of train/ has no readable image; fix or remove train/ant/0"):
        gathered(folder_config(settings, tree, broken_images="skip"), tmp_path)


def test_arrays_hold_the_squares_of_whole_files_in_order(tree: Path, settings: Settings, tmp_path: Path) -> None:
    (tree / "train/ant/3.png").write_bytes(b"")
    found = gathered(folder_config(settings, tree, broken_images="skip"), tmp_path)
    files = [Path(f) for f in json.loads(Path(found.jobs["train"].images).read_text())]
    rows = np.load(tmp_path / "work/train_images.npy")
    assert len(files) == len(rows) == 15
    np.testing.assert_array_equal(np.load(tmp_path / "work/train_labels.npy"), [0] * 7 + [1] * 8)
    for file, row in zip(files, rows, strict=True):
        np.testing.assert_array_equal(row, imagefolder.resize_and_crop(imagefolder.decode_image(file)[0], 16))
    pixels = rows.reshape(-1, 3) / 255
    np.testing.assert_allclose(gather.channel_mean_std(found.histogram), (pixels.mean(0), pixels.std(0)), rtol=1e-9)
    assert found.conversions["skipped"] == {"files": 1, "kinds": {"an empty file": 1}, "first": ["train/ant/3.png"]}


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "quality"), [("raw", None), ("jpg", 95)])
def test_a_tree_is_stored_in_either_mode(tree: Path, settings: Settings, mode: str, quality: int | None) -> None:
    Image.fromarray(np.tile(RGB, (90, 60, 1))).save(tree / "train/ant/big.png")  # 14 MB: more than a page of FFCV's
    save(tree / "train/zebra/gray.png", "L")
    (tree / "train/zebra/bad.jpg").write_bytes(b"no picture")
    data = folder_config(
        settings,
        tree,
        odd_images="convert",
        broken_images="skip",
        write_mode=mode,
        jpeg_quality=quality,
        max_resolution=None if mode == "raw" else 48,
        arrays=mode == "raw",
    )
    made = prepare_dataset(data, progress=False)
    folder = manifest.dataset_dir(data)
    assert prepare_dataset(data, progress=False) == made  # and so verified
    assert not made.fixed_size
    assert {part: split.samples for part, split in made.splits.items()} == {"train": 18, "test": 6}
    assert (made.writer["converted"]["files"], made.writer["skipped"]["first"]) == (1, ["train/zebra/bad.jpg"])
    content = beton.inspect_beton(folder / "train.beton")
    assert content.raw.all() if mode == "raw" else not content.raw.any()
    files = sorted((tree / "train").rglob("*.png"))
    for i, file in enumerate(files):
        image = imagefolder.decode_image(file)[0]
        here = np.fromfile(folder / "train.beton", np.uint8, content.sizes[i], offset=int(content.pointers[i]))
        if mode == "raw":
            assert here.tobytes() == image.tobytes()
        else:
            assert max(content.width[i], content.height[i]) <= 48
    assert bool(list(folder.glob("*.npy"))) == (mode == "raw")
    with pytest.raises(UserError, match=r"set data\.name to another name"):
        prepare_dataset(folder_config(settings, tree, **{**vars(data), "path": str(tree.parent)}), progress=False)
