"""Run directories in the real format, made in milliseconds: what training leaves behind, without the training.

``fabricate`` makes a whole run; ``FakeRun`` one piece by piece; ``write_run`` one whose rows the test writes itself, of
``start``, ``epoch``, ``final`` and ``stop`` below. Nothing else in the tests writes a run's files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from runyard.config import schema
from runyard.config.schema import Config
from runyard.data import manifest
from runyard.runs.journal import Journal
from runyard.runs.record import RUN_FORMAT
from runyard.runs.results.history import RunHistory
from runyard.runs.run import Run

DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
STEPS = 390  # an epoch
BEGAN = 1_790_000_000.0  # unix seconds, when a run was made
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PARAMETERS = 4_693_962
Row = dict[str, Any]
Make = Callable[..., RunHistory]
Compare = Callable[..., tuple[int, str, str]]


def start(step: int = 0, **fields: Any) -> Row:
    began = {
        "job": "4711", "job_id": "4711", "launcher": "slurm", "nodelist": "gpu-017", "world_size": 2, "nodes": 1,
        "device": "cuda", "device_name": "NVIDIA H100 80GB HBM3", "cpus": 16, "threads": 8, "torch": "2.13.0",
        "python": "3.11.9", "hostname": "gpu-017", "step": step, "epoch": step // STEPS,
        "resumed_from": f"step_{step:08d}" if step else None, "parameters": PARAMETERS, "precision": "bf16",
        "loader": "ffcv",
    }  # fmt: skip
    return {"event": "start", **(began | fields)}


def epoch(number: int, **fields: Any) -> Row:
    measured = {
        "epoch": number, "step": number * STEPS, "train_loss": 2.0 / number, "train_top1": 0.4,
        "test_loss": 1.0 / number, "test_top1": 0.5, "val_loss": None, "val_top1": None, "lr": 0.1,
        "images_per_s": 100.0, "data_wait_pct": 1.0, "train_s": 1.0, "eval_s": 0.1, "peak_memory_mb": 300.0,
        "clock_s": 1.5 * number,
    }  # fmt: skip
    return {"event": "epoch", **(measured | fields)}


def final(top1: float, best_epoch: int, **fields: Any) -> Row:
    known = {"split": "test", "top1": top1, "top1_best": top1, "best_epoch": best_epoch, "parameters": PARAMETERS}
    return {"event": "final", **(known | fields)}


def stop(reason: str, **fields: Any) -> Row:
    return {"event": "stop", **({"reason": reason, "message": "", "cause": None} | fields)}


def write_run(
    path: Path, rows: Iterable[Row] = (), *, values: dict[str, Any] | None = None, created: float = BEGAN, **record: Any
) -> None:
    """A run's directory, its journal of ``rows``; without ``config.yaml`` if it has no ``values``."""
    path.mkdir(parents=True)
    if values is not None:
        (path / "config.yaml").write_text(yaml.dump(values, Dumper=DUMPER, sort_keys=False))
    known = {"format": RUN_FORMAT, "id": path.name, "name": (values or {}).get("name"), "created": created,
             "code_sha256": "c0de" * 16, "overrides": [], "jobs": [], "sweep": None}  # fmt: skip
    (path / "run.json").write_text(json.dumps(known | record))
    append_rows(path, rows)


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    if lines := "".join(json.dumps(row) + "\n" for row in rows):
        with open(path / "metrics.jsonl", "a") as journal:
            journal.write(lines)


class FakeRun:
    """A run's directory, made anew, then filled: ``train``, then ``finish``. Every number comes from its seed.

    ``settings`` take the configuration's place by their dotted names; a value ``...`` leaves a setting out.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        *,
        settings: dict[str, Any] | None = None,
        classes: Iterable[str] = CLASSES,
        began: float = BEGAN,
        **record: Any,
    ) -> None:
        self.path, self.began, self.now, self.classes = path, began, began, list(classes)
        self.values = schema.config_to_dict(config)
        for name, value in (settings or {}).items():
            *groups, leaf = name.split(".")
            group = self.values
            for part in groups:
                group = group[part]
            if value is ...:
                group.pop(leaf)
            else:
                group[leaf] = value
        self.epochs: int = self.values["epochs"]
        write_run(path, values=self.values, created=began, **record)
        self.journal = Journal(path / "metrics.jsonl")
        self._last: Row = {}

    @property
    def run(self) -> Run:
        return Run.open(self.path)

    def append(self, row: Row, after_s: float = 0.0) -> None:
        self.now += after_s
        append_rows(self.path, [row | {"t": self.now}])

    def train(
        self,
        *,
        top1: float = 0.92,
        done: int | None = None,
        restarts: tuple[int, ...] = (),
        validation: bool = False,
        epoch_s: float = 36.0,
        **machine: Any,
    ) -> FakeRun:
        """The journal of ``done`` epochs, all by default. Accuracy rises to ``top1`` exactly at the last of all.

        Args:
            restarts: Epochs within which the run was interrupted at its middle and went on a minute later, elsewhere.
            epoch_s: How long an epoch lasts, on each rank.
            machine: Fields of the starts.
        """
        wobble = np.random.default_rng(self.values["seed"] + 1).normal(0, 1, (self.epochs + 1, 3))
        self.append(start(**machine))
        for number in range(1, (self.epochs if done is None else done) + 1):
            if number in restarts:
                self.append(stop("interrupted", cause="time limit"), epoch_s / 2)
                self.append(start((number - 1) * STEPS + STEPS // 2, **({"hostname": "gpu-018"} | machine)), 60)
                self.now -= epoch_s / 2
            fall = math.exp(-5 * number / self.epochs) - math.exp(-5)
            score = top1 * (1 - fall)
            if number < self.epochs:
                score = min(top1, (top1 - 0.002) * (1 - fall) + 0.0005 * wobble[number, 0])
            measured = {
                "train_loss": 0.5 + 1.5 * fall + 0.01 * wobble[number, 1],
                "train_top1": min(1.0, score + 0.03),
                "test_loss": 0.5 + 1.4 * fall + 0.01 * wobble[number, 2],
                "test_top1": score,
                "val_loss": 0.52 + 1.4 * fall if validation else None,
                "val_top1": score - 0.005 if validation else None,
                "lr": self.values["optim"]["lr"] * (1 + math.cos(math.pi * number / self.epochs)) / 2,
                "images_per_s": 50_000 / epoch_s + wobble[number, 0],
                "data_wait_pct": 1.2 + 0.1 * wobble[number, 1],
                "train_s": epoch_s * 0.9,
                "eval_s": epoch_s * 0.1,
                "peak_memory_mb": 2345.6,
                "clock_s": epoch_s * number,
            }
            if number % self.values["evaluate_every_epochs"] and number < self.epochs:
                measured |= dict.fromkeys(("test_loss", "test_top1", "val_loss", "val_top1"))
            else:
                self._last = measured
            self.append(epoch(number, **measured), epoch_s)
        return self

    def describe_data(self, *, mark: str = "0", images: int = 10_000, arrays: bool = False) -> None:
        """``data.json``. ``mark``: what the test set's hash is made of."""
        split = {
            "samples": images, "beton": "test.beton", "beton_sha256": mark * 64, "beton_bytes": 1,
            "images": "test_images.npy" if arrays else None, "labels": "test_labels.npy" if arrays else None,
            "arrays_sha256": {},
        }  # fmt: skip
        known = {
            "format": "runyard-data-1", "name": self.values["data"]["name"], "kind": self.values["data"]["kind"],
            "source": "made", "classes": self.classes, "image_size": self.values["data"]["image_size"],
            "mean": [0.5] * 3, "std": [0.2] * 3, "splits": {"train": split, "test": split}, "writer": {},
            "fixed_size": True,
        }  # fmt: skip
        (self.path / "data.json").write_text(json.dumps(known))

    def finish(self, top1: float = 0.92, *, images: int = 0, arrays: bool = False) -> FakeRun:
        """The final row and the stop after it; predictions of so many test images, ``top1`` right; their ``arrays``."""
        if arrays:
            self.describe_data(images=images, arrays=True)
            self._write_arrays(images)
        row = final(top1, self.epochs, classes=self.classes, clock_s=self._last.get("clock_s", 0.0))
        row["loss"] = self._last.get("test_loss")
        if images:
            row |= {"confusion": self._predict(top1, images).tolist()}
        self.append(row)
        self.append(stop("finished"))
        return self

    def _predict(self, top1: float, images: int) -> np.ndarray:
        """``predictions.npz``; some classes are taken for each other more often than others."""
        random, count = np.random.default_rng(self.values["seed"]), len(self.classes)
        label = np.arange(images) % count
        wrong = np.zeros(images, bool)
        wrong[random.permutation(images)[: round(images * (1 - top1))]] = True
        predicted = np.where(wrong, (label + 1 + random.geometric(0.55, images) % max(1, count - 1)) % count, label)
        np.savez(
            self.path / "predictions.npz",
            index=np.arange(images),
            label=label,
            predicted=predicted,
            confidence=random.random(images, np.float32),
        )
        self.confusion = np.zeros((count, count), np.int64)
        np.add.at(self.confusion, (label, predicted), 1)
        return self.confusion

    def _write_arrays(self, images: int) -> None:
        """The prepared test set that ``finish`` predicted: waves in colours, each class its own."""
        config = self.run.config.data
        size, folder, count = config.image_size, manifest.dataset_dir(config), len(self.classes)
        folder.mkdir(parents=True)
        labels = np.arange(images) % count
        y, x = np.mgrid[:size, :size] / size
        by = labels[:, None, None]
        waves = [np.sin(6.3 * (x * (1 + by % 3) + y * (by % 4) + by / count + c / 3)) for c in range(3)]
        noise = np.random.default_rng(0).normal(0, 12, (images, size, size, 3))
        np.save(folder / "test_images.npy", np.clip(128 + 90 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8))
        np.save(folder / "test_labels.npy", labels)


def fabricate(
    runs_dir: Path,
    config: Config,
    run_id: str,
    *,
    settings: dict[str, Any] | None = None,
    top1: float = 0.92,
    done: int | None = None,
    restarts: tuple[int, ...] = (),
    device: str = "cuda",
    ranks: int = 4,
    epoch_s: float = 36.0,
    end: str = "finished",
    message: str = "",
    test_images: int = 0,
    data: str = "0",
    sweep: str | None = None,
    validation: bool = False,
    began: float = BEGAN,
) -> Path:
    """One run, from its start to its ``end``: "finished", "failed", "interrupted", or "" for no word.

    Args:
        settings, done, restarts, epoch_s: As in ``FakeRun``.
        test_images: How many predictions to keep; 0: none.
        data: What the test set's hash is made of.
    """
    fake = FakeRun(runs_dir / run_id, config, settings=settings, began=began, sweep=sweep)
    fake.describe_data(mark=data)
    fake.train(
        top1=top1, done=done, restarts=restarts, validation=validation, epoch_s=epoch_s, world_size=ranks,
        device=device, device_name="NVIDIA H200" if device == "cuda" else "CPU", threads=2, hostname="gpu-017",
    )  # fmt: skip
    if end == "finished":
        fake.finish(top1, images=test_images)
    elif end:
        fake.append(stop(end, message=message))
    return fake.path
