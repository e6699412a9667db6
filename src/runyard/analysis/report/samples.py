"""The most confused pairs of classes, with the test images that were mistaken."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runyard.data import manifest
from runyard.errors import UserError
from runyard.files import open_regular, read_within
from runyard.runs.results.facts import ReportData
from runyard.runs.results.history import read_predictions

MAX_PAIRS, MAX_SAMPLES_PER_PAIR = 8, 6
MAX_SAMPLE_PX = 96  # larger images are scaled down


@dataclass(frozen=True)
class Sample:
    """One mistaken test image: its index in the test set, the network's confidence (0 to 1), and its PNG."""

    index: int
    confidence: float
    png: bytes


@dataclass(frozen=True)
class ConfusedPair:
    """``count`` images of class ``true`` that were taken for ``predicted``."""

    true: int
    predicted: int
    count: int
    samples: list[Sample]


def confused_pairs(report_data: ReportData) -> tuple[list[ConfusedPair], str]:
    """Return the class pairs with the most mistakes, and why they have no images (empty if they have).

    Images with the most confident mistakes come first."""
    if report_data.confusion is None:
        return [], ""
    mistakes = report_data.confusion * (1 - np.eye(len(report_data.confusion), dtype=np.int64))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:MAX_PAIRS]
    cells = [divmod(int(flat_index), len(mistakes)) for flat_index in order]
    counted = [(true, predicted, int(mistakes[true, predicted])) for true, predicted in cells]
    counted = [pair for pair in counted if pair[2]]
    try:
        predictions = read_predictions(report_data.run.path)
        prepared = manifest.dataset_dir(report_data.run.config.data)
        images = test_images(prepared, report_data.run.path / "data.json", predictions.index, predictions.label)
    except UserError as error:
        return [ConfusedPair(*pair, []) for pair in counted], str(error)
    pairs = []
    for true, predicted, count in counted:
        rows = np.flatnonzero((predictions.label == true) & (predictions.predicted == predicted))
        rows = rows[np.argsort(-predictions.confidence[rows], kind="stable")][:MAX_SAMPLES_PER_PAIR]
        chosen = zip(predictions.index[rows], predictions.confidence[rows], strict=True)
        samples = [Sample(int(index), float(confidence), png(images[index])) for index, confidence in chosen]
        pairs.append(ConfusedPair(true, predicted, count, samples))
    return pairs, ""


def png(image: np.ndarray) -> bytes:
    """Encode an image, uint8 [H, W, 3], as a PNG of at most ``MAX_SAMPLE_PX`` pixels a side."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((MAX_SAMPLE_PX, MAX_SAMPLE_PX))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def test_images(folder: Path, data_json: Path, index: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the prepared test images in ``folder``, uint8 [N, S, S, 3], as a memory map.

    Args:
        data_json: The run's own copy of the manifest.
        index, label: Indices and labels of the images that the run was tested on, int64 [N].

    Raises:
        UserError: the images are missing, or are no longer those the run was tested on.
    """
    try:
        values = json.loads(read_within(data_json.parent, data_json.name))
    except (OSError, ValueError):
        raise UserError("the run's data.json is missing or damaged") from None
    split = manifest.manifest_from_dict(values, "data.json").splits["test"]
    if split.images is None:
        raise UserError("the data set was prepared without plain arrays (data.arrays=false)")
    images = _array(folder / split.images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"{folder / split.images} holds no images")
    labels = _array(folder / "test_labels.npy")
    matches = len(index) and 0 <= index.min() <= index.max() < len(images) == len(labels)
    if not matches or not np.array_equal(labels[index], label):
        raise UserError(f"the images in {folder} are no longer those the run was tested on")
    return images


def _array(path: Path) -> np.ndarray:
    try:
        with open_regular(path):
            return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise UserError(f"the prepared images are no longer at {path}") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error})") from None
