"""``manifest.json``: what a prepared data set consists of, and whether its files are still that. No torch, no ffcv."""

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
from runyard.data.arrays import ArrayFile
from runyard.errors import UserError
from runyard.files import read_regular, sha256

MANIFEST_FILE = "manifest.json"
DATASET_FORMAT = "runyard-data-1"
CHECKSUM = "checksum"  # older manifests have none
DATASET_HINT = "delete its folder and run: runyard prepare; or set data.root or data.name to another"


@dataclass(frozen=True)
class Split:
    """One part of a data set. File names are relative to its folder.

    Attributes:
        samples: Number of images.
        beton, beton_sha256, beton_bytes: The FFCV file.
        images: uint8 [samples, image_size, image_size, 3] as .npy; None without arrays.
        labels: int64 [samples] as .npy; None without arrays.
        arrays_sha256: sha256 by array file name.
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
        source: Where the images came from, in words.
        mean, std: Per channel, of the training part (without what is held out) as the network sees it, in [0, 1].
        splits: "train", "test", and "validation" if a part is held out.
        writer: How the files were written; for image folders also how many files were converted or left out.
        fixed_size: Every stored image is exactly image_size square.
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
        """Identity of the content: of every file, the class names and the normalisation."""
        aside = ("name", "source", "writer", CHECKSUM)
        content = {key: value for key, value in manifest_to_dict(self).items() if key not in aside}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def dataset_dir(data: DataConfig) -> Path:
    """Where the prepared files lie: root/NAME, and in the name whatever is written otherwise than by default."""
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
    if data.validation_fraction:
        parts.append(f"val{data.validation_fraction!r}-seed{data.split_seed}")
    return Path(data.root) / "-".join(parts)


def manifest_to_dict(manifest: Manifest) -> dict[str, Any]:
    """As JSON holds it."""
    values = {"format": DATASET_FORMAT, **json.loads(json.dumps(asdict(manifest)))}
    return values | {CHECKSUM: _checksum(values)}


def _checksum(values: Mapping[str, Any]) -> str:
    """Of all that a manifest says: that a mean or a class name was damaged could not be seen otherwise."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def manifest_from_dict(values: Mapping[str, Any], where: str = MANIFEST_FILE, fix: str = DATASET_HINT) -> Manifest:
    """The manifest in these values; ``where`` names them in messages, and ``fix`` says what mends them.

    Raises:
        UserError: made by another program, or damaged.
    """
    if not isinstance(values, Mapping) or values.get("format") != DATASET_FORMAT:
        raise UserError(f'{where}: not a manifest of this program (expected "format": "{DATASET_FORMAT}"); {fix}')
    try:
        given = {key: value for key, value in values.items() if key not in ("format", CHECKSUM)}
        splits = {str(name): Split(**split) for name, split in given["splits"].items()}
        mean, std = (tuple(float(x) for x in given[key]) for key in ("mean", "std"))
        classes = tuple(str(c) for c in given["classes"])
        manifest = Manifest(**{**given, "splits": splits, "mean": mean, "std": std, "classes": classes})
        if not all(isinstance(n, str) for s in splits.values() for n in (s.beton, s.beton_sha256)):
            raise ValueError("a part without a file")
        names = [n for s in splits.values() for n in (s.beton, s.images, s.labels) if n is not None]
        if len(mean) != 3 or len(std) != 3 or not classes or not {"train", "test"} <= set(splits):
            raise ValueError("it lacks classes, channels, or the train and test parts")
        if not all(map(math.isfinite, mean)) or not all(0 < x < math.inf for x in std):
            raise ValueError("a mean or std that is no finite number, or a std of 0")
        if type(given["image_size"]) is not int or not isinstance(given["classes"], (list, tuple)):
            raise ValueError("image_size or classes of a wrong type")
        if not isinstance(given["writer"], Mapping):
            raise ValueError("writer of a wrong type")
        if any(type(s.samples) is not int or s.samples < 1 for s in splits.values()):
            raise ValueError("a part without images")
        if any(Path(n).name != n for n in names):
            raise ValueError("a file name that leaves the folder")
        if CHECKSUM in values and values[CHECKSUM] != _checksum({k: v for k, v in values.items() if k != CHECKSUM}):
            raise ValueError("it was changed: its checksum is another")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: damaged ({error}); {fix}") from None
    return manifest


def prepare_command(overrides: Iterable[str]) -> str:
    """The command that prepares what a run with these overrides reads."""
    own = [o for o in overrides if o.partition("=")[0] in ("data", "experiment") or o.startswith("data.")]
    return shlex.join(["runyard", "prepare", *own])


def load_manifest(folder: Path, command: str = "runyard prepare data=NAME") -> Manifest:
    """The manifest of a prepared folder. ``command`` is what would prepare it.

    Raises:
        UserError: nothing is prepared there, or the manifest is damaged or another program's.
    """
    try:
        return read_manifest(folder / MANIFEST_FILE)
    except FileNotFoundError:
        raise UserError(f"{folder}: no prepared data there (no {MANIFEST_FILE}); make it: {command}") from None


def read_manifest(path: Path, fix: str = DATASET_HINT) -> Manifest:
    """The manifest in a file. ``fix`` says what mends it.

    Raises:
        FileNotFoundError: it is not there.
        UserError: it is damaged or another program's.
    """
    try:
        values = json.loads(read_regular(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror}); mend its permissions, or {fix}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: damaged (no JSON); {fix}") from None
    return manifest_from_dict(values, str(path), fix)


def verify_dataset(folder: Path, manifest: Manifest, split_names: Iterable[str], *, hash_files: bool) -> None:
    """Check that the files of these parts are those of the manifest: structure and size, and sha256 if asked.

    Raises:
        UserError: a file is missing, truncated, foreign, or changed; it is named.
    """
    for name in split_names:
        if name not in manifest.splits:
            raise UserError(
                f"{folder}: has no part {name!r}, only {', '.join(manifest.splits)}; "
                "data.validation_fraction above 0 holds one out"
            )
        split = manifest.splits[name]
        content = beton.inspect_beton(folder / split.beton)
        size = (folder / split.beton).stat().st_size
        if content.samples != split.samples or size != split.beton_bytes:
            raise UserError(
                f"{folder / split.beton}: {content.samples} samples in {size} bytes, and the manifest says "
                f"{split.samples} in {split.beton_bytes}; delete the folder and run: runyard prepare"
            )
        if not 0 <= content.labels.min() <= content.labels.max() < len(manifest.classes):
            raise UserError(
                f"{folder / split.beton}: a label outside of 0..{len(manifest.classes) - 1}; "
                "delete the folder and run: runyard prepare"
            )
        side = manifest.image_size
        _check_array(folder, split.images, "uint8", (split.samples, side, side, 3))
        _check_array(folder, split.labels, "int64", (split.samples,))
        if hash_files:
            for file, digest in {split.beton: split.beton_sha256, **split.arrays_sha256}.items():
                if sha256(folder / file) != digest:
                    raise UserError(
                        f"{folder / file}: its sha256 is not the manifest's: it was changed; "
                        "delete the folder and run: runyard prepare"
                    )


def _check_array(folder: Path, file: str | None, dtype: str, shape: tuple[int, ...]) -> None:
    if file is None:
        return
    path = folder / file
    try:
        array = ArrayFile(path)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "truncated or no .npy file"
        raise UserError(f"{path}: {reason}; delete its folder and run: runyard prepare") from None
    if array.dtype != dtype or array.shape != shape:
        raise UserError(
            f"{path}: holds {array.dtype} {list(array.shape)}, and the manifest says {dtype} {list(shape)};"
            " delete the folder and run: runyard prepare"
        )
