"""Run directories in the real format, made in milliseconds: what training leaves behind, without the training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from runyard.config import schema
from runyard.config.schema import Config

DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
STEPS = 390
BEGAN = 1_790_000_000.0


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
    """One run. Accuracy rises to ``top1`` exactly at the last epoch; an epoch lasts ``epoch_s`` on each rank.

    Args:
        settings: By dotted name, instead of the configuration's; a value ``...`` leaves the setting out.
        done: Epochs done; all by default.
        restarts: Epochs within which the run was interrupted at its middle and went on a minute later.
        end: "finished", "failed", "interrupted", or "" for no word.
        test_images: How many predictions to keep; 0: none.
        data: What the test set's hash is made of.
    """
    path = runs_dir / run_id
    path.mkdir(parents=True)
    values = schema.config_to_dict(config)
    for name, value in (settings or {}).items():
        *groups, leaf = name.split(".")
        place = values
        for part in groups:
            place = place[part]
        if value is ...:
            place.pop(leaf)
        else:
            place[leaf] = value
    (path / "config.yaml").write_text(yaml.dump(values, Dumper=DUMPER, sort_keys=False))
    record = {
        "format": "runyard-run-1",
        "id": run_id,
        "name": values["name"],
        "created": began,
        "code_sha256": "c0de" * 16,
        "overrides": [],
        "jobs": [],
        "sweep": sweep,
    }
    (path / "run.json").write_text(json.dumps(record))
    rows, classes = _rows(values, top1, done, restarts, device, ranks, epoch_s, validation, began)
    if end == "finished":
        random = np.random.default_rng(values["seed"])
        final: dict[str, Any] = {
            "split": "test",
            "top1": top1,
            "top1_best": top1,
            "best_epoch": values["epochs"],
            "classes": classes,
            "clock_s": rows[-1].get("clock_s", 0.0),
            "parameters": 4_693_962,
        }
        if test_images:
            label = np.arange(test_images) % len(classes)
            wrong = np.zeros(test_images, bool)
            wrong[random.permutation(test_images)[: round(test_images * (1 - top1))]] = True
            predicted = np.where(
                wrong, (label + 1 + random.integers(0, len(classes) - 1, test_images)) % len(classes), label
            )
            confusion = np.zeros((len(classes),) * 2, int)
            np.add.at(confusion, (label, predicted), 1)
            final["confusion"] = confusion.tolist()
            np.savez(
                path / "predictions.npz",
                index=np.arange(test_images),
                label=label,
                predicted=predicted,
                confidence=random.random(test_images, np.float32),
            )
        rows.append({"event": "final", "t": rows[-1]["t"], **final})
    if end:
        rows.append({"event": "stop", "t": rows[-1]["t"], "reason": end, "message": message})
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = {
        "samples": 10_000,
        "beton": "test.beton",
        "beton_sha256": data * 64,
        "beton_bytes": 1,
        "images": None,
        "labels": None,
        "arrays_sha256": {},
    }
    (path / "data.json").write_text(
        json.dumps(
            {
                "format": "runyard-data-1",
                "name": values["data"]["name"],
                "kind": values["data"]["kind"],
                "source": "made",
                "classes": classes,
                "image_size": 32,
                "mean": [0.5] * 3,
                "std": [0.2] * 3,
                "splits": {"train": split, "test": split},
                "writer": {},
                "fixed_size": True,
            }
        )
    )
    return path


def _rows(
    values: dict[str, Any],
    top1: float,
    done: int | None,
    restarts: tuple[int, ...],
    device: str,
    ranks: int,
    epoch_s: float,
    validation: bool,
    began: float,
) -> tuple[list[dict[str, Any]], list[str]]:
    epochs = values["epochs"]
    wobble = np.random.default_rng(values["seed"] + 1).normal(0, 1, (epochs + 1, 3))

    def start(t: float, step: int) -> dict[str, Any]:
        return {
            "event": "start",
            "t": t,
            "job": "4711",
            "launcher": "slurm",
            "world_size": ranks,
            "nodes": 1,
            "device": device,
            "device_name": "NVIDIA H200" if device == "cuda" else "CPU",
            "cpus": 16,
            "threads": 2,
            "torch": "2.13.0",
            "python": "3.11.9",
            "hostname": "gpu-017",
            "step": step,
            "epoch": step // STEPS,
            "resumed_from": f"step_{step:08d}" if step else None,
            "parameters": 4_693_962,
            "precision": "bf16",
            "loader": "ffcv",
        }

    t = began
    rows = [start(t, 0)]
    for epoch in range(1, (epochs if done is None else done) + 1):
        if epoch in restarts:
            t += epoch_s / 2
            rows.append({"event": "stop", "t": t, "reason": "interrupted", "message": "", "cause": "time limit"})
            t += 60
            rows.append(start(t, (epoch - 1) * STEPS + STEPS // 2))
            t -= epoch_s / 2
        t += epoch_s
        fall = math.exp(-5 * epoch / epochs) - math.exp(-5)
        score = top1 * (1 - fall) if epoch == epochs else (top1 - 0.002) * (1 - fall) + 0.0005 * wobble[epoch, 0]
        score = min(score, top1)
        rows.append(
            {
                "event": "epoch",
                "t": t,
                "epoch": epoch,
                "step": epoch * STEPS,
                "train_loss": 0.5 + 1.5 * fall + 0.01 * wobble[epoch, 1],
                "train_top1": min(1.0, score + 0.03),
                "test_loss": 0.5 + 1.4 * fall + 0.01 * wobble[epoch, 2],
                "test_top1": score,
                "val_loss": 0.52 + 1.4 * fall if validation else None,
                "val_top1": score - 0.005 if validation else None,
                "lr": values["optim"]["lr"] * (1 + math.cos(math.pi * epoch / epochs)) / 2,
                "images_per_s": 50_000 / epoch_s + wobble[epoch, 0],
                "data_wait_pct": 1.2 + 0.1 * wobble[epoch, 1],
                "train_s": epoch_s * 0.9,
                "eval_s": epoch_s * 0.1,
                "peak_memory_mb": 2345.6,
                "clock_s": epoch_s * epoch,
            }
        )
    return rows, ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
