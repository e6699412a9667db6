"""Where two networks give the same test images different classes: how often, and a few of the images."""

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
from runyard.runs.history import RunHistory, SavedPredictions

MAX_IMAGES = 72
MAX_COMPARED_RUNS = 60  # runs whose disagreements are counted; more make a page of counts
MAX_PICTURE_PX = 64
LOSSLESS_PX = 32


def disagreements(groups: Sequence[Group]) -> dict[str, Any]:
    """For the page's script; ``why`` alone where no two runs kept predictions on the same test images.

    ``runs`` are places among all runs in the order of the groups; ``counts`` has for each pair i < j of them, in order,
    how many images the first alone got right, the second alone, and both wrong but differently. ``images`` are some of
    those on which they differ, with what each run took them for; without them, ``missing`` says why. ``why`` says of
    each run that is not among them why it is not.
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
    """By place: the runs that kept predictions on the same images as the first that did; and why others are not."""
    out: dict[int, tuple[RunHistory, SavedPredictions]] = {}
    reasons: dict[int, str] = {}
    for position, run in enumerate(runs):
        if run.test_sha256 is None:
            reasons[position] = "without its data.json nobody knows which test images it saw"
        elif out and run.test_sha256 != next(iter(out.values()))[0].test_sha256:
            reasons[position] = "it saw other test images than the others"
        elif len(out) == MAX_COMPARED_RUNS:
            reasons[position] = (
                f"on this page {MAX_COMPARED_RUNS} runs are held against each other; compare fewer to see it"
            )
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
    """Rows of the table that are compared at first: one run of each of the best groups, best first."""
    owner = [group for group in groups for _ in group.runs]
    rows = sorted(range(len(positions)), key=lambda row: -np.nan_to_num(owner[positions[row]].mean("last")))
    one_each = {id(owner[positions[row]]): row for row in reversed(rows)}
    ahead = [row for row in rows if one_each[id(owner[positions[row]])] == row]
    return (ahead if len(ahead) > 1 else rows)[:6]


def _informative_images(table: np.ndarray, best_rows: Sequence[int]) -> np.ndarray:
    """Images on which the best two differ, then those on which the others do; spread over the test set."""
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
    """From the first folder of prepared data that is here: a run copied from elsewhere names one that is not.

    Raises:
        UserError: none is here, or it holds other data; the first run's reason.
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
