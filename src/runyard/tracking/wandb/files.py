"""Uploads parts of a run's directory to W&B as files and tables: code, settings, predictions, checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from runyard.analysis.report.samples import png, test_images
from runyard.data import manifest
from runyard.errors import UserError
from runyard.files import open_within, read_within
from runyard.runs.code import snapshot
from runyard.runs.results import facts
from runyard.runs.results.history import read_predictions
from runyard.runs.run import Run

PER_CLASS = ("class", "images", "recall", "precision", "mostly taken for")
SAMPLES = ("image", "true", "predicted", "confidence", "index")
WANDB_FOLDER = "runyard"  # among a W&B run's files
RUN_FILES = ("run.json", "config.yaml", "data.json", "metrics.jsonl", "predictions.npz")
SAMPLES_EACH = 32  # misclassified images, and as many correct ones
MAX_WANDB_CLASSES = 100  # in a confusion matrix: W&B's tables end at 10,000 rows, one for each pair


def save_code(run: Run, record: Any) -> None:
    """Upload the code that was submitted as W&B's code artifact: the files that its hash covers and no others."""
    with contextlib.suppress(UserError, OSError):  # it was changed since, or is gone
        snapshot.verify_snapshot(run.code_path, run.record.get("code_sha256"))
        code = run.code_path.absolute()
        submitted = {str(path) for path in snapshot.snapshot_files(code).values()}
        record.log_code(
            root=str(code),
            name=f"source-{run.config.tracking.project}",
            include_fn=lambda path, root: path in submitted,
        )


def save_directory(run: Run, record: Any) -> None:
    """Upload the files by which others read the run as from its own directory, as far as they exist. Replaces old ones.

    W&B's client sends a file again when it has changed, and once more when the record is closed.

    Raises:
        OSError: a file cannot be read or copied. The others are sent all the same.
    """
    folder = Path(record.dir) / WANDB_FOLDER  # W&B has a config.yaml of its own
    folder.mkdir(exist_ok=True)
    first_error = None
    for name in RUN_FILES:
        new = not (folder / name).exists()
        try:
            with open_within(run.path, name) as source, open(folder / f".{name}", "wb") as copy:
                shutil.copyfileobj(source, copy)
        except FileNotFoundError:  # predictions come last
            continue
        except OSError as error:
            first_error = first_error or OSError(error.errno, f"{name}: {error.strerror}")
            continue
        (folder / f".{name}").replace(folder / name)
        if new:
            record.save(str(folder / name), base_path=record.dir, policy="live")
    if first_error is not None:
        raise first_error


def final_tables(run: Run) -> dict[str, Any]:
    """Return the confusion matrix, a table by class, and sample predictions, as far as they exist."""
    import wandb

    report_data = facts.load_report_data(run)
    if report_data.confusion is None:
        return {}
    confusion, classes = report_data.confusion, report_data.classes
    tables: dict[str, Any] = {
        "per_class": wandb.Table(columns=list(PER_CLASS), data=per_class_rows(confusion, classes))
    }
    if len(classes) <= MAX_WANDB_CLASSES:
        true, predicted = np.nonzero(confusion)
        counts = confusion[true, predicted]
        tables["confusion_matrix"] = wandb.plot.confusion_matrix(
            y_true=np.repeat(true, counts).tolist(), preds=np.repeat(predicted, counts).tolist(), class_names=classes
        )
    if samples := _samples(run, classes):
        tables["sample_predictions"] = wandb.Table(columns=list(SAMPLES), data=samples)
    return tables


def per_class_rows(confusion: np.ndarray, classes: list[str]) -> list[list[object]]:
    """Return rows of ``PER_CLASS`` from an integer confusion matrix [true class, predicted class].

    A rate is None where there was no image, or no such prediction, to divide by.
    """
    rows: list[list[object]] = []
    for label, name in enumerate(classes):
        correct, images, predicted = confusion[label, label], confusion[label].sum(), confusion[:, label].sum()
        wrong = np.where(np.arange(len(classes)) == label, 0, confusion[label])
        confused_with = classes[int(wrong.argmax())] if wrong.any() else None
        recall, precision = (float(correct / n) if n else None for n in (images, predicted))
        rows.append([name, int(images), recall, precision, confused_with])
    return rows


def _samples(run: Run, classes: list[str]) -> list[list[object]]:
    """Return rows of ``SAMPLES``: the most confident mistakes, then images spread evenly over the correct ones."""
    import wandb
    from PIL import Image

    try:
        p = read_predictions(run.path)
        images = test_images(manifest.dataset_dir(run.config.data), run.path / "data.json", p.index, p.label)
    except UserError:  # no predictions, or the data is elsewhere: no table
        return []
    wrong, correct = np.flatnonzero(p.predicted != p.label), np.flatnonzero(p.predicted == p.label)
    most_confident = wrong[np.argsort(-p.confidence[wrong], kind="stable")][:SAMPLES_EACH]
    spread = correct[np.unique(np.linspace(0, len(correct) - 1, SAMPLES_EACH).astype(int))] if len(correct) else correct
    return [
        [wandb.Image(Image.open(io.BytesIO(png(images[p.index[i]])))), classes[p.label[i]], classes[p.predicted[i]],
         float(p.confidence[i]), int(p.index[i])]
        for i in (*most_confident, *spread)
    ]  # fmt: skip


def log_checkpoints(run: Run, record: Any) -> None:
    """Upload the newest and the best checkpoint as versions of one artifact, aliased last and best, unless damaged."""
    import wandb

    checkpoints = [c for path in sorted(run.checkpoints.glob("step_*")) if (c := _checkpoint(path)) is not None]
    scored = [c for c in checkpoints if c[1]["score"] is not None]
    best = max(scored, key=lambda c: (c[1]["score"], c[1]["step"])) if scored else None
    for path, metadata in checkpoints:
        aliases = ["last"] * (path == checkpoints[-1][0]) + ["best"] * (best is not None and path == best[0])
        if aliases:
            artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=metadata)
            artifact.add_file(str(path / "state.pt"))
            record.log_artifact(artifact, aliases=[*aliases, path.name])


def _checkpoint(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return a checkpoint's folder and manifest, None unless its content matches. It needs no torch."""
    try:
        recorded = json.loads(read_within(path.parents[1], f"checkpoints/{path.name}/manifest.json"))
        with open_within(path.parents[1], f"checkpoints/{path.name}/state.pt") as state:
            intact = hashlib.file_digest(state, "sha256").hexdigest() == recorded["sha256"]
        return (path, recorded) if intact else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
