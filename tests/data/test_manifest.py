"""A prepared folder is known by its name and its manifest, and any change to its files is seen."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runyard.config.schema import DataConfig
from runyard.data import manifest
from runyard.data.manifest import Manifest
from runyard.errors import UserError

Settings = Callable[..., DataConfig]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def check(folder: Path, *, hash_files: bool) -> Manifest:
    made = manifest.load_manifest(folder)
    manifest.verify_dataset(folder, made, made.splits, hash_files=hash_files)
    return made


def test_settings_that_change_the_files_change_the_folder(settings: Settings) -> None:
    cifar = {"name": "cifar10", "kind": "cifar10", "image_size": 32, "samples": None, "num_classes": None}
    changes: list[dict[str, Any]] = [
        {},
        {"name": "b"},
        {"image_size": 32},
        {"samples": [300, 41]},
        {"samples": [301, 40]},
        {"num_classes": 5},
        {"write_mode": "jpg", "jpeg_quality": 90},
        {"write_mode": "jpg", "jpeg_quality": 91},
        {"arrays": False},
        {"max_resolution": 64},
        {"odd_images": "convert"},
        {"broken_images": "skip"},
        {"validation_fraction": 0.1},
        {"validation_fraction": 0.1, "split_seed": 1},
        {"validation_fraction": 0.1000000001},
        cifar,
    ]
    folders = [manifest.dataset_dir(settings(**change)) for change in changes]
    assert len(set(folders)) == len(folders)
    assert folders[-1] == Path("data/cifar10")
    assert all(f.parent == Path("data") for f in folders)


def test_settings_that_do_not_change_the_files_do_not_change_the_folder(settings: Settings) -> None:
    for change in ({"path": "elsewhere"}, {"sources": ["disk"]}):
        assert manifest.dataset_dir(settings(**change)) == manifest.dataset_dir(settings())


def test_a_manifest_survives_json(folder: Path) -> None:
    made = manifest.load_manifest(folder)
    assert manifest.manifest_from_dict(json.loads(json.dumps(manifest.manifest_to_dict(made)))) == made


def test_identity_depends_on_the_content_only(folder: Path) -> None:
    made = manifest.load_manifest(folder)
    assert replace(made, name="other", source="elsewhere").sha256 == made.sha256
    train = replace(made.splits["train"], beton_sha256="0" * 64)
    assert replace(made, splits={**made.splits, "train": train}).sha256 != made.sha256


def test_a_folder_that_was_not_prepared_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="runyard prepare"):
        manifest.load_manifest(tmp_path / "nothing")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '{"splits": {}}',
        '{"format": "runyard-data-0"}',
        '{"format": "runyard-data-1"}',
    ],
)
def test_a_broken_or_foreign_manifest_is_refused_by_name(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: ") as error:
        manifest.load_manifest(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", [0.5, 0.5]),
        ("std", "abc"),
        ("classes", []),
        ("splits", {}),
        ("surprise", 1),
    ],
)
def test_a_manifest_with_a_wrong_entry_is_refused(folder: Path, key: str, value: object) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**values, key: value}))
    with pytest.raises(UserError, match="damaged"):
        manifest.load_manifest(folder)


def test_a_manifest_cannot_name_a_file_outside_of_its_folder(folder: Path) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    values["splits"]["train"]["beton"] = "../../secret"
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="outside of the folder"):
        manifest.load_manifest(folder)


def test_whole_files_pass(folder: Path) -> None:
    check(folder, hash_files=True)


@pytest.mark.parametrize("file", ["train.beton", "test.beton", "train_images.npy", "test_labels.npy"])
def test_a_flipped_bit_is_seen_by_its_hash_and_the_file_named(folder: Path, file: str) -> None:
    place = 2_300_000 if file.endswith(".beton") else -8
    flip(folder / file, place)
    check(folder, hash_files=False)  # the control: structure and size alone do not show it
    with pytest.raises(UserError, match=f"{file}: its sha256"):
        check(folder, hash_files=True)


@pytest.mark.parametrize("file", ["train.beton", "test.beton", "train_images.npy", "test_labels.npy"])
def test_a_truncated_file_is_seen_without_hashing(folder: Path, file: str) -> None:
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[:-100])
    with pytest.raises(UserError, match=file):
        check(folder, hash_files=False)


@pytest.mark.parametrize("file", ["train.beton", "train_images.npy"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"{file}: .*No such file"):
        check(folder, hash_files=False)


def test_a_beton_of_another_set_is_refused(folder: Path) -> None:
    (folder / "train.beton").write_bytes((folder / "test.beton").read_bytes())
    with pytest.raises(UserError, match=r"train\.beton: 40 samples .* the manifest says 300"):
        check(folder, hash_files=False)


def test_an_array_of_another_shape_is_refused(folder: Path) -> None:
    np.save(folder / "train_images.npy", np.zeros((300, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"train_images\.npy: holds uint8 \[300, 8, 8, 3\]"):
        check(folder, hash_files=False)


def test_labels_beyond_the_classes_are_refused(folder: Path) -> None:
    made = manifest.load_manifest(folder)
    with pytest.raises(UserError, match=r"a label outside of 0\.\.1"):
        manifest.verify_dataset(folder, replace(made, classes=("a", "b")), ["train"], hash_files=False)


def test_a_part_that_was_not_held_out_names_the_setting(folder: Path) -> None:
    with pytest.raises(UserError, match=r"data\.validation_fraction"):
        manifest.verify_dataset(folder, manifest.load_manifest(folder), ["validation"], hash_files=False)
