"""Counts and shows the test images that two networks classify differently."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from runyard.analysis.compare.groups import Group
from runyard.analysis.report.samples import test_images
from runyard.config.schema import DataConfig
from runyard.data import manifest
from runyard.errors import UserError
from runyard.runs.results.history import RunHistory, SavedPredictions

MAX_IMAGES = 72
MAX_COMPARED_RUNS = 60  # further runs are left out: the number of counts grows with the square
MAX_PICTURE_PX = 64
LOSSLESS_PX = 32


def disagreements(groups: Sequence[Group]) -> dict[str, object]:
    """Return the disagreements of the groups' runs as a JSON-ready mapping for the page's script.

    ``runs`` are positions among all runs in the order of the groups. ``counts`` has three numbers for each pair i < j
    of them, in order: images that only the first classified correctly, only the second, and both wrongly but
    differently. ``images`` are some images on which runs differ, with each run's prediction; without images,
    ``missing`` says why. ``why`` has a reason for each run that is not among ``runs``; it is the only key if fewer than
    two runs have predictions on the same test images.
    """
    answers, reasons = _answers([run for group in groups for run in group.runs])
    if len(answers) < 2:
        return {"why": reasons}
    positions = list(answers)
    first = answers[positions[0]][1]
    table = np.stack([predictions.predicted for _, predictions in answers.values()])
    right = table == first.label
    counts = []
    for index in range(len(table) - 1):
        differ = table[index + 1 :] != table[index]
        only_first = (right[index] & differ).sum(axis=1)
        only_second = (right[index + 1 :] & differ).sum(axis=1)
        counts += (
            np.stack([only_first, only_second, differ.sum(axis=1) - only_first - only_second], axis=1).ravel().tolist()
        )
    out = {"runs": positions, "counts": counts, "of": len(first.index), "images": [], "missing": "", "why": reasons}
    chosen = _informative_images(table, _best_rows(groups, positions))
    try:
        pictures = _pictures([run for run, _ in answers.values()], first, chosen)
    except UserError as error:
        return out | {"missing": str(error)}
    out["images"] = [
        {
            "index": int(first.index[row]),
            "label": int(first.label[row]),
            "taken": table[:, row].tolist(),
            "source": picture,
        }
        for row, picture in zip(chosen, pictures, strict=True)
    ]
    return out


def _answers(runs: Sequence[RunHistory]) -> tuple[dict[int, tuple[RunHistory, SavedPredictions]], dict[int, str]]:
    """Return by position the runs with predictions on the first such run's images, and why others are missing."""
    out: dict[int, tuple[RunHistory, SavedPredictions]] = {}
    reasons: dict[int, str] = {}
    for position, run in enumerate(runs):
        if run.test_sha256 is None:
            reasons[position] = "without its data.json it is unknown which test images it saw"
        elif out and run.test_sha256 != next(iter(out.values()))[0].test_sha256:
            reasons[position] = "it saw other test images than the others"
        elif len(out) == MAX_COMPARED_RUNS:
            reasons[position] = f"this page compares {MAX_COMPARED_RUNS} runs with each other; compare fewer to see it"
        elif (predictions := run.predictions()) is None:
            reasons[position] = "it kept no predictions"
        else:
            known = next(iter(out.values()))[1] if out else predictions
            if np.array_equal(known.index, predictions.index) and np.array_equal(known.label, predictions.label):
                out[position] = (run, predictions)
            else:
                reasons[position] = "it saw other test images than the others"
    return out, reasons


def _best_rows(groups: Sequence[Group], positions: Sequence[int]) -> list[int]:
    """Return the table rows of at most six runs: one of each of the best groups, best first."""
    owner = [group for group in groups for _ in group.runs]
    rows = sorted(range(len(positions)), key=lambda row: -np.nan_to_num(owner[positions[row]].mean("last")))
    one_each = {id(owner[positions[row]]): row for row in reversed(rows)}
    ahead = [row for row in rows if one_each[id(owner[positions[row]])] == row]
    return (ahead if len(ahead) > 1 else rows)[:6]


def _informative_images(table: np.ndarray, best_rows: Sequence[int]) -> np.ndarray:
    """Return sorted indices, int64, of images on which the best two runs differ, or others do; spread out."""
    best = np.flatnonzero(table[best_rows[0]] != table[best_rows[1]])
    others = np.flatnonzero((table[list(best_rows)] != table[best_rows[0]]).any(axis=0))
    others = others[~np.isin(others, best)]
    half = MAX_IMAGES // 2
    chosen = [_spread(best, max(half, MAX_IMAGES - len(others)))]
    chosen.append(_spread(others, MAX_IMAGES - len(chosen[0])))
    return np.sort(np.concatenate(chosen))


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    positions = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return rows[np.unique(positions)]


def _pictures(runs: Sequence[RunHistory], predictions: SavedPredictions, rows: np.ndarray) -> list[str]:
    """Return the images from the first prepared data set that exists; a copied run may name one that does not.

    Raises:
        UserError: no run's data set exists with these images; the reason is the first run's.
    """
    reasons: dict[Path, UserError] = {}
    for run in runs:
        settings: dict[str, Any] = {field.name: run.settings.get(f"data.{field.name}") for field in fields(DataConfig)}
        prepared = manifest.dataset_dir(DataConfig(**settings))
        if prepared in reasons:
            continue
        try:
            images = test_images(prepared, run.directory / "data.json", predictions.index, predictions.label)
            return [_picture(images[predictions.index[row]]) for row in rows]
        except UserError as error:
            reasons[prepared] = error
    raise next(iter(reasons.values()))


def _picture(image: np.ndarray) -> str:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((MAX_PICTURE_PX, MAX_PICTURE_PX))
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=85, lossless=max(picture.size) <= LOSSLESS_PX)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
