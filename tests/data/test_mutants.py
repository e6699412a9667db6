"""Damaged data is refused in one line, or is data all the same: never other images, never a crash. Seeded; few, as each
start of the suite pays for them."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runyard.config.schema import DataConfig
from runyard.data import beton, manifest
from runyard.data.loading.ffcv_reader import BetonSource
from runyard.data.prepare.pipeline import prepare_dataset
from runyard.data.verified import check_content
from runyard.errors import UserError

SEED, EACH, SAMPLES = 12, 12, 300
HEAD = beton._HEADER.itemsize + 2 * beton._FIELD.itemsize
OTHER = "train.beton and manifest.json were read, and hold something else"
Settings = Callable[..., DataConfig]


@pytest.fixture(scope="module")
def sound(prepared_root: Path, settings: Settings) -> dict[str, Path]:
    """A small set of raw pixels and one of JPEGs."""
    raw = settings(root=str(prepared_root))
    jpg = settings(root=str(prepared_root), write_mode="jpg", jpeg_quality=90)
    prepare_dataset(jpg, progress=False)
    return {"raw": manifest.dataset_dir(raw), "jpg": manifest.dataset_dir(jpg)}


def flip(content: bytearray, rng: random.Random, where: range) -> None:
    content[rng.choice(where)] ^= 1 << rng.randrange(8)


def overwrite(content: bytearray, rng: random.Random, where: range) -> None:
    at = rng.choice(where)
    content[at : at + 64] = rng.randbytes(len(content[at : at + 64]))


def clear(content: bytearray, rng: random.Random, where: range) -> None:
    at = rng.choice(where)
    content[at : at + 512] = bytes(len(content[at : at + 512]))


def cut(content: bytearray, rng: random.Random, where: range) -> None:
    del content[rng.choice(where) :]


CHANGES = [flip, overwrite, clear, cut]


def mutants(folder: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """Contents of a file, each damaged once: of a beton by turns in its structure, its records and its images."""
    whole, rng = (folder / name).read_bytes(), random.Random(f"{SEED} {folder.name} {name}")
    places = [range(len(whole))]
    if name.endswith(".beton"):
        found = beton.inspect_beton(folder / name)
        places = [
            range(HEAD),
            range(HEAD, HEAD + SAMPLES * beton._RECORD.itemsize),
            range(found.pointers.min(), found.pointers.max()),
            range(len(whole) - 24 * SAMPLES, len(whole)),
        ]
    for number in range(EACH):
        change = CHANGES[rng.randrange(len(CHANGES))]
        content = bytearray(whole)
        change(content, rng, places[number % len(places)])
        if content != whole:
            yield f"{change.__name__} {number}", bytes(content)


def read(folder: Path, *, hashed: bool) -> tuple[Any, ...]:
    """All that a training would take from the folder.

    Raises:
        UserError: it is refused.
    """
    data = manifest.load_manifest(folder)
    if hashed:
        check_content(folder, data, {part.beton: part.beton_sha256 for part in data.splits.values()})
    manifest.verify_dataset(folder, data, data.splits, hash_files=False)
    source = BetonSource(folder / "train.beton", data.image_size)
    images, _ = source.read(np.arange(data.splits["train"].samples))
    return dataclasses.replace(data, name="", source="", writer={}), images.tobytes(), source.labels.tobytes()


def refusal(folder: Path, whole: tuple[Any, ...], *, hashed: bool) -> str | None:
    """What is said of the folder; None: it is read as before; OTHER: it is read, and holds something else."""
    try:
        return None if read(folder, hashed=hashed) == whole else OTHER
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("name", ["train.beton", "manifest.json"])
@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_a_mutant_is_refused_in_one_line_or_changes_nothing(
    sound: dict[str, Path], tmp_path: Path, mode: str, name: str
) -> None:
    folder = Path(shutil.copytree(sound[mode], tmp_path / "set"))
    whole, unseen = read(folder, hashed=True), 0
    for what, content in mutants(sound[mode], name):
        (folder / name).write_bytes(content)
        said = refusal(folder, whole, hashed=True)
        assert said is None or (name in said and "\n" not in said), what
        unseen += refusal(folder, whole, hashed=False) == OTHER  # the control; and no mutant crashes without it, either
        assert said != OTHER, what
    assert unseen > 0 or name != "train.beton", "the sha256 has nothing to do"


def test_a_jpeg_of_another_size_than_its_record_says_is_refused_by_the_samples_number(
    sound: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sound["jpg"], tmp_path / "set"))
    content = bytearray((folder / "train.beton").read_bytes())
    records = np.frombuffer(content, beton._RECORD, SAMPLES, HEAD)
    records["width"][7], records["height"][7] = 24, 20
    (folder / "train.beton").write_bytes(content)
    source = BetonSource(folder / "train.beton", 16)
    source.read(np.arange(7))
    with pytest.raises(UserError, match=r"sample 7 does not have the 24x20 px that the file says; .*runyard prepare"):
        source.read(np.arange(40))


def test_a_beton_cut_short_while_it_is_read_is_named_with_both_sizes(sound: dict[str, Path], tmp_path: Path) -> None:
    """Were it mapped, the process would die of SIGBUS, without a word."""
    folder = Path(shutil.copytree(sound["raw"], tmp_path / "set"))
    path, source = folder / "train.beton", BetonSource(folder / "train.beton", 16)
    size = path.stat().st_size
    os.truncate(path, 4096)
    with pytest.raises(UserError, match=rf"train\.beton: changed while it was read: 4096 bytes, and it had {size}"):
        source.read(np.arange(40))
    os.truncate(path, 0)
    with pytest.raises(UserError, match="0 bytes"):
        source.read(np.arange(1))


@pytest.mark.parametrize("name", ["train.beton", "manifest.json", "train_images.npy"])
def test_a_fifo_in_place_of_a_prepared_file_is_refused_and_not_waited_for(
    sound: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(sound["raw"], tmp_path / "set"))
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match="FIFO"):
        read(folder, hashed=True)
