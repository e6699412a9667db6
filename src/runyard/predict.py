"""Predicted labels for unlabeled images, written as a CSV with an ID and a label column, as competitions require."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from runyard.data import manifest
from runyard.data.arrays import ArrayFile, load_npy
from runyard.data.datasets.image_tree import no_image_by_name, utf8_name
from runyard.data.datasets.imagefolder import BrokenImageError, cpus, decode_image, printable_path, resize_and_crop
from runyard.data.loading.batch import Normalize
from runyard.errors import UserError
from runyard.files import open_regular, write_atomic
from runyard.runs.record import RUN_HINT
from runyard.runs.run import Run
from runyard.training.checkpoint import load_network

ARRAY_KEYS = ("data", "images")
PICKLE_STARTS = (b"\x80", b"(", b"}")  # a dict, pickled by any protocol
EXPECTED_INPUT = "expected a folder of images, a .npy or .npz file, or a pickled dict with a data array"
ARRAY_HELP = "expected uint8 [N, S, S, 3], [N, 3, S, S], or rows as CIFAR's [N, 3*S*S]"


@dataclass(frozen=True)
class Images:
    """Images in input order. ``read(start, stop)`` returns uint8 [stop - start, S, S, 3]."""

    ids: list[str]
    read: Callable[[int, int], np.ndarray]


def predict_to_csv(
    run: Run,
    images: Path,
    out: Path,
    *,
    which: Literal["last", "best"] = "last",
    flip_tta: bool = False,
    columns: tuple[str, ...] = ("ID", "Labels"),
    labels: Literal["index", "name"] = "index",
    batch_size: int | None = None,
) -> int:
    """Predict the label of every image in ``images`` and write ``out``: a header, then one row per image, in order.

    ``images`` is one of
    - a folder: all files in it that are no text, system or hidden files by their names, in natural order (2.png before
      10.png). The ID is the file name without its suffix. Images of another size are resized by the shorter side
      and center-cropped, as in evaluation.
    - a .npy file, or a .npz with one array or one named data or images. The ID is the position, from 0.
    - a pickled dict with an array under data; no code in the file is run.
    An ``ids`` array beside the images (npz, pickle) gives the IDs. Arrays must have the run's image size.

    Args:
        flip_tta: Add the logits of the mirrored image to those of the image.
        columns: Names of the ID column and the label column.
        labels: Whether to write class indices or class names.
        batch_size: Images per batch; by default the run's eval_batch_size.

    Returns:
        The number of rows.

    Raises:
        UserError: the run, the images or ``out`` cannot be used. Nothing is written then.
    """
    if not out.parent.is_dir() or (out.exists() and not out.is_file()):  # a device must not be replaced by a file
        raise UserError(f"--out {printable_path(out)}: expected a file name in a folder that exists")
    data = _data(run)
    source = open_images(images, data.image_size)
    repeated = [name for name, count in Counter(source.ids).most_common(1) if count > 1]
    if repeated:
        raise UserError(
            f"--images {printable_path(images)}: two images have the ID {repeated[0]!r}", "rename one of them"
        )
    network = load_network(run, which)
    batch_size = batch_size or run.config.eval_batch_size
    class_indices = predict_classes(run, network, data, source, flip_tta=flip_tta, batch_size=batch_size)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(
        (name, data.classes[index] if labels == "name" else index)
        for name, index in zip(source.ids, class_indices, strict=True)
    )
    try:
        write_atomic(out, table.getvalue().encode(errors="surrogateescape"))  # of a given array of IDs
    except OSError as error:
        raise UserError(
            f"--out {printable_path(out)}: cannot write it ({error.strerror})", "choose another file"
        ) from error
    return len(class_indices)


@torch.no_grad()
def predict_classes(
    run: Run, network: torch.nn.Module, data: manifest.Manifest, source: Images, *, flip_tta: bool, batch_size: int
) -> list[int]:
    """Return the class index of each image, computed as in the run's evaluation, on a GPU if there is one."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    normalize = Normalize(data.mean, data.std).to(device)
    layout = torch.channels_last if run.config.channels_last else torch.contiguous_format
    network = network.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[run.config.precision]
    autocast = dtype == torch.bfloat16 or (dtype == torch.float16 and device.type == "cuda")

    def logits(batch: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype if autocast else torch.bfloat16, enabled=autocast):
            x = normalize(batch)
            return network(x if run.config.channels_last else x.contiguous()).float()  # type: ignore[no-any-return]

    predicted: list[int] = []
    bar = Progress(
        TextColumn("labelling"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("labelling", total=len(source.ids))
        for start in range(0, len(source.ids), batch_size):
            stop = min(start + batch_size, len(source.ids))
            batch = torch.from_numpy(np.array(source.read(start, stop), order="C")).to(device)
            scores = logits(batch)
            if flip_tta:
                scores = scores + logits(batch.flip(2))
            predicted += scores.argmax(1).tolist()
            bar.update(task, completed=stop)
    return predicted


def open_images(path: Path, image_size: int) -> Images:
    """Open the images at ``path``: a folder, an array file, or a pickled dict.

    Raises:
        UserError: it does not exist, is empty, or cannot be read as images of this size.
    """
    try:
        if path.is_dir():
            return _folder(path, image_size)
        with open_regular(path) as file:
            head = file.read(6)
        if head == b"\x93NUMPY":
            return _from_array(_npy(path), None, path, image_size)
        if not head.startswith((*PICKLE_STARTS, b"PK")):
            raise UserError(f"--images {printable_path(path)}: not a supported kind of file", EXPECTED_INPUT)
        arrays: Mapping[str, object] = _npz(path) if head.startswith(b"PK") else _pickle(path)
    except OSError as error:
        raise UserError(
            f"--images {printable_path(path)}: cannot read it ({error.strerror or error})", EXPECTED_INPUT
        ) from None
    except (ValueError, EOFError) as error:
        reason = (str(error).splitlines() or ["truncated"])[0]
        raise UserError(
            f"--images {printable_path(path)}: damaged, or not plain numbers ({reason})", EXPECTED_INPUT
        ) from None
    key = next((key for key in ARRAY_KEYS if key in arrays), None)
    if key is None and len(arrays) == 1:
        key = next(iter(arrays))
    if key is None:
        names = ", ".join(sorted(arrays)) or "nothing"
        raise UserError(f"--images {printable_path(path)}: holds {names}", "expected an array named data")
    return _from_array(arrays[key], arrays.get("ids"), path, image_size)


def _data(run: Run) -> manifest.Manifest:
    path = run.path / "data.json"
    try:
        return manifest.read_manifest(path, RUN_HINT)
    except FileNotFoundError:
        raise UserError(
            f"run {run.id} has not been trained (no data.json)", f"train it first: runyard resume {run.cli_reference}"
        ) from None


def _folder(folder: Path, image_size: int) -> Images:
    files = sorted((p for p in folder.iterdir() if no_image_by_name(p.name) is None and not p.is_dir()), key=_natural)
    ids = []
    for path in files:
        if (name := utf8_name(path.stem)) is None:
            raise UserError(f"--images {printable_path(path)}: its name is not UTF-8", "rename it")
        ids.append(name)
    if not files:
        raise UserError(
            f"--images {printable_path(folder)}: no files in it", "expected a folder that holds the image files itself"
        )
    pool = ThreadPoolExecutor(cpus())

    def load(path: Path) -> np.ndarray:
        try:
            return resize_and_crop(decode_image(path)[0], image_size)
        except BrokenImageError as error:
            raise UserError(
                f"{printable_path(path)}: cannot be read as an image ({error})", "fix or remove it"
            ) from None

    def read(start: int, stop: int) -> np.ndarray:
        return np.stack(list(pool.map(load, files[start:stop])))

    return Images(ids, read)


def _natural(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name


def _npy(path: Path) -> ArrayFile | np.ndarray:
    try:
        return ArrayFile(path)
    except ValueError:  # in Fortran order; or damaged, and then load_npy raises an error that says so
        return load_npy(path)


def _npz(path: Path) -> dict[str, np.ndarray]:
    import zipfile
    import zlib

    try:
        with open_regular(path) as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError) as error:
        raise ValueError(str(error) or "a damaged archive") from None


def _pickle(path: Path) -> dict[str, object]:
    from runyard.data.datasets import safe_pickle

    content = safe_pickle.load_pickle(path)
    if not isinstance(content, dict):
        raise UserError(f"--images {printable_path(path)}: a pickled {type(content).__name__}", EXPECTED_INPUT)
    return {_text(key): value for key, value in content.items()}


def _from_array(array: object, ids: object, path: Path, size: int) -> Images:
    if not isinstance(array, (np.ndarray, ArrayFile)) or array.dtype != np.uint8:
        actual = array.dtype if isinstance(array, (np.ndarray, ArrayFile)) else type(array).__name__
        raise UserError(f"--images {printable_path(path)}: {actual}", f"{ARRAY_HELP}, values 0 to 255")
    shape = array.shape
    if len(shape) == 2 and shape[1] and math.isqrt(shape[1] // 3) ** 2 * 3 == shape[1]:
        side = math.isqrt(shape[1] // 3)
        shape = (shape[0], 3, side, side)
    channels_last = len(shape) == 4 and shape[3] == 3
    if not channels_last and not (len(shape) == 4 and shape[1] == 3):
        raise UserError(f"--images {printable_path(path)}: shape {list(array.shape)}", ARRAY_HELP)
    if not shape[0]:
        raise UserError(f"--images {printable_path(path)}: no images in it", ARRAY_HELP)
    height, width = shape[1:3] if channels_last else shape[2:4]
    if (height, width) != (size, size):
        raise UserError(
            f"--images {printable_path(path)}: images of {width}x{height} px, expected the run's {size}x{size}",
            "resize them, or give a folder of image files",
        )

    def read(start: int, stop: int) -> np.ndarray:
        rows = array.rows(range(start, stop)) if isinstance(array, ArrayFile) else array[start:stop]
        chunk = rows.reshape(-1, *shape[1:])
        return chunk if channels_last else chunk.transpose(0, 2, 3, 1)

    return Images(_ids(ids, shape[0], path), read)


def _ids(ids: object, count: int, path: Path) -> list[str]:
    if ids is None:
        return [str(index) for index in range(count)]
    values = list(ids) if isinstance(ids, (list, tuple)) or (isinstance(ids, np.ndarray) and ids.ndim == 1) else []
    if len(values) != count:
        raise UserError(f"--images {printable_path(path)}: expected one ID in ids for each of the {count} images")
    return [_text(value) for value in values]


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
