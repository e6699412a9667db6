"""``manifest.json``: the content of a prepared data set, and checks of its files. Imports neither torch nor ffcv."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runyard.config.schema import DataConfig
from runyard.data import beton
from runyard.data.arrays import REBUILD_HINT, ArrayFile
from runyard.errors import UserError
from runyard.files import file_fix, read_regular, sha256

MANIFEST_FILE = "manifest.json"
DATASET_FORMAT = "runyard-data-1"
CHECKSUM = "checksum"  # older manifests have none
DATASET_HINT = "delete its folder and run: runyard prepare; or set data.root or data.name to another"


@dataclass(frozen=True)
class Split:
    """One split of a data set. File names are relative to its folder.

    Attributes:
        samples: Number of images.
        beton, beton_sha256, beton_bytes: The FFCV file.
        images: uint8 [samples, image_size, image_size, 3] as .npy; None without arrays.
        labels: int64 [samples] as .npy; None without arrays.
        arrays_sha256: SHA-256 of each array file, by file name.
    """

    samples: int
    beton: str
    beton_sha256: str
    beton_bytes: int
    images: str | None
    labels: str | None
    arrays_sha256: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """A prepared data set.

    Attributes:
        source: Description of where the images came from.
        mean, std: Per channel in [0, 1], of the training split without held-out images, at the network's image size.
        splits: "train", "test", and "validation" if images are held out.
        writer: Settings of the writer; for image folders also how many files were converted, skipped or left out, and
            the names of those that were held out.
        fixed_size: Whether every stored image is exactly image_size x image_size px.
    """

    name: str
    kind: str
    source: str
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    splits: dict[str, Split]
    writer: dict[str, Any]
    fixed_size: bool

    @property
    def sha256(self) -> str:
        """The identity of the content: a hash of every file's SHA-256, the class names and the normalization."""
        excluded = ("name", "source", "writer", CHECKSUM)
        content = {key: value for key, value in manifest_to_dict(self).items() if key not in excluded}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def dataset_dir(data: DataConfig) -> Path:
    """Return the folder of the prepared files: root/NAME, where NAME includes all settings that are not the default."""
    parts = [data.name]
    if data.samples is not None and data.num_classes is not None:
        parts.append(f"{data.samples[0]}+{data.samples[1]}-{data.num_classes}classes")
    if not data.kind.startswith("cifar"):
        parts.append(f"{data.image_size}px")
    if data.max_resolution is not None:
        parts.append(f"max{data.max_resolution}")
    if data.write_mode == "jpg":
        parts.append(f"jpg{data.jpeg_quality}")
    parts += ["convert"] * (data.odd_images == "convert") + ["skip"] * (data.broken_images == "skip")
    if not data.arrays:
        parts.append("noarrays")
    if data.test_fraction:
        parts.append(f"test{data.test_fraction!r}")
    if data.validation_fraction:
        parts.append(f"val{data.validation_fraction!r}")
    if data.test_fraction or data.validation_fraction:
        parts.append(f"seed{data.split_seed}")
    return Path(data.root) / "-".join(parts)


def manifest_to_dict(manifest: Manifest) -> dict[str, object]:
    """Return the manifest as a JSON object with its format and checksum."""
    values = {"format": DATASET_FORMAT, **json.loads(json.dumps(asdict(manifest)))}
    return values | {CHECKSUM: _checksum(values)}


def _checksum(values: Mapping[str, object]) -> str:
    """Return the SHA-256 of all values: a damaged mean or class name could not be detected otherwise."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def manifest_from_dict(values: Mapping[str, Any], where: str = MANIFEST_FILE, fix: str = DATASET_HINT) -> Manifest:
    """Return the manifest with these values. In messages, ``where`` is their origin and ``fix`` says what to do.

    Raises:
        UserError: the values are from another program, or damaged.
    """
    if not isinstance(values, Mapping) or values.get("format") != DATASET_FORMAT:
        raise UserError(f'{where}: not a manifest of this program (expected "format": "{DATASET_FORMAT}")', fix)
    try:
        fields = {key: value for key, value in values.items() if key not in ("format", CHECKSUM)}
        splits = {str(name): Split(**split) for name, split in fields["splits"].items()}
        mean, std = (tuple(float(x) for x in fields[key]) for key in ("mean", "std"))
        classes = tuple(str(c) for c in fields["classes"])
        manifest = Manifest(**{**fields, "splits": splits, "mean": mean, "std": std, "classes": classes})
        if not all(isinstance(n, str) for s in splits.values() for n in (s.beton, s.beton_sha256)):
            raise ValueError("a split without a file")
        names = [n for s in splits.values() for n in (s.beton, s.images, s.labels) if n is not None]
        if len(mean) != 3 or len(std) != 3 or not classes or not {"train", "test"} <= set(splits):
            raise ValueError("classes, channels, or the splits train and test are missing")
        if not all(map(math.isfinite, mean)) or not all(0 < x < math.inf for x in std):
            raise ValueError("a mean or std that is not finite, or a std of 0")
        if type(fields["image_size"]) is not int or not isinstance(fields["classes"], (list, tuple)):
            raise ValueError("image_size or classes has a wrong type")
        if not isinstance(fields["writer"], Mapping):
            raise ValueError("writer has a wrong type")
        if any(type(s.samples) is not int or s.samples < 1 for s in splits.values()):
            raise ValueError("a split without images")
        if any(Path(n).name != n for n in names):
            raise ValueError("a file name outside of the folder")
        if CHECKSUM in values and values[CHECKSUM] != _checksum({k: v for k, v in values.items() if k != CHECKSUM}):
            raise ValueError("it was changed: its checksum does not match")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: damaged ({error})", fix) from None
    return manifest


def prepare_command(overrides: Iterable[str]) -> str:
    """Return the command that prepares the data for a run with these overrides."""
    data_overrides = [o for o in overrides if o.partition("=")[0] in ("data", "experiment") or o.startswith("data.")]
    return shlex.join(["runyard", "prepare", *data_overrides])


def load_manifest(folder: Path, command: str = "runyard prepare data=NAME") -> Manifest:
    """Return the manifest of a prepared folder. ``command`` is the command that prepares it.

    Raises:
        UserError: there are no prepared data, or the manifest is damaged or from another program.
    """
    try:
        return read_manifest(folder / MANIFEST_FILE)
    except FileNotFoundError:
        raise UserError(f"{folder}: no prepared data there (no {MANIFEST_FILE})", f"make it: {command}") from None


def read_manifest(path: Path, fix: str = DATASET_HINT) -> Manifest:
    """Return the manifest in a file. In messages, ``fix`` says what to do.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: it cannot be read, is damaged, or is from another program.
    """
    try:
        values = json.loads(read_regular(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror})", f"{file_fix(error)}, or {fix}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: damaged (not JSON)", fix) from None
    return manifest_from_dict(values, str(path), fix)


def verify_dataset(folder: Path, manifest: Manifest, split_names: Iterable[str], *, hash_files: bool) -> None:
    """Check that the files of these splits match the manifest: structure and size, and SHA-256 if ``hash_files``.

    Raises:
        UserError: a file is missing, truncated, of another kind, or changed; the message names it.
    """
    for name in split_names:
        if name not in manifest.splits:
            raise UserError(
                f"{folder}: has no split {name!r}, only {', '.join(manifest.splits)}",
                "data.validation_fraction above 0 holds one out",
            )
        split = manifest.splits[name]
        content = beton.inspect_beton(folder / split.beton)
        size = (folder / split.beton).stat().st_size
        if content.samples != split.samples or size != split.beton_bytes:
            raise UserError(
                f"{folder / split.beton}: {content.samples} samples in {size} bytes, and the manifest says "
                f"{split.samples} in {split.beton_bytes}",
                "delete the folder and run: runyard prepare",
            )
        if not 0 <= content.labels.min() <= content.labels.max() < len(manifest.classes):
            raise UserError(
                f"{folder / split.beton}: a label outside of 0..{len(manifest.classes) - 1}",
                "delete the folder and run: runyard prepare",
            )
        side = manifest.image_size
        _check_array(folder, split.images, "uint8", (split.samples, side, side, 3))
        _check_array(folder, split.labels, "int64", (split.samples,))
        if hash_files:
            for file, digest in {split.beton: split.beton_sha256, **split.arrays_sha256}.items():
                if sha256(folder / file) != digest:
                    raise UserError(
                        f"{folder / file}: its sha256 is not that in the manifest: it was changed",
                        "delete the folder and run: runyard prepare",
                    )


def _check_array(folder: Path, file: str | None, dtype: str, shape: tuple[int, ...]) -> None:
    if file is None:
        return
    path = folder / file
    try:
        array = ArrayFile(path)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "truncated or not a .npy file"
        raise UserError(f"{path}: {reason}", REBUILD_HINT) from None
    if array.dtype != dtype or array.shape != shape:
        raise UserError(
            f"{path}: holds {array.dtype} {list(array.shape)}, and the manifest says {dtype} {list(shape)}",
            "delete the folder and run: runyard prepare",
        )
