"""Run directories as training leaves them, made in milliseconds."""

import json
import math

import numpy as np
import pytest
import yaml

from runyard.config import schema
from runyard.config.compose import compose
from runyard.data import manifest
from runyard.runs.journal import Journal
from runyard.runs.run import Run

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SETTINGS = {
    "name": "fake",
    "seed": 0,
    "runs_dir": "runs",
    "epochs": 50,
    "batch_size": 128,
    "accumulate": 1,
    "eval_batch_size": 500,
    "evaluate_every_epochs": 1,
    "loader": "ffcv",
    "workers": None,
    "precision": "bf16",
    "channels_last": True,
    "compile": "none",
    "ema_decay": None,
    "loss": {"label_smoothing": 0.05, "mixup_alpha": 0.0, "cutmix_alpha": 0.0},
    "data": {
        "name": "cifar10",
        "kind": "cifar10",
        "root": "data",
        "sources": ["disk"],
        "path": None,
        "image_size": 32,
        "max_resolution": None,
        "write_mode": "raw",
        "jpeg_quality": None,
        "odd_images": "refuse",
        "broken_images": "refuse",
        "arrays": True,
        "validation_fraction": 0.0,
        "split_seed": 0,
        "samples": None,
        "num_classes": None,
    },
    "augment": {
        "flip": "random",
        "crop_padding_px": 4,
        "crop_fill": "black",
        "rotation_deg": 0.0,
        "rotation_interpolation": "nearest",
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
        "cutout_px": 0,
    },
    "model": {"name": "paper_resnet", "max_parameters": None, "widths": [64, 64, 128, 256]},
    "optim": {
        "name": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.01,
        "decay_norms_and_biases": True,
        "betas": [0.9, 0.999],
        "momentum": None,
        "grad_clip_norm": None,
    },
    "schedule": {
        "name": "cosine_restarts",
        "period_epochs": 15.0,
        "peak_fraction": None,
        "final_lr_fraction": 0.0,
        "warmup_epochs": 0.0,
    },
    "checkpoint": {"every_s": 300.0, "every_epochs": None, "keep_last": 2, "keep_best": True},
    "tracking": {
        "mode": "none",
        "project": "runyard",
        "entity": None,
        "group": None,
        "tags": [],
        "artifacts": False,
        "all_nodes": False,
    },
    "cluster": compose([]).values["cluster"],
}
STEPS = 390


class FakeRun:
    """Writes a run directory. Every number comes from ``seed``."""

    def __init__(
        self,
        folder,
        *,
        epochs=50,
        done=None,
        classes=None,
        images=1000,
        restarts=(),
        validation=False,
        evaluate_every=1,
        data=None,
        seed=0,
    ):
        self.random = np.random.default_rng(seed)
        self.epochs, self.done = epochs, epochs if done is None else done
        self.classes, self.images = list(classes or CIFAR10), images
        self.restarts, self.validation, self.evaluate_every = restarts, validation, evaluate_every
        self.path = folder / "20251122-164500-fake-ab12"
        self.path.mkdir(parents=True)
        settings = {
            **SETTINGS,
            "epochs": epochs,
            "evaluate_every_epochs": evaluate_every,
            "data": {**SETTINGS["data"], "root": str(folder / "data"), **(data or {})},
        }
        checked = schema.config_to_dict(schema.config_from_dict(settings))
        (self.path / "config.yaml").write_text(yaml.safe_dump(checked, sort_keys=False))
        record = {
            "format": "runyard-run-1",
            "id": self.path.name,
            "name": "fake",
            "created": 1763829900.0,
            "code_sha256": "c0de" * 16,
            "overrides": ["experiment=paper"],
            "jobs": [],
        }
        (self.path / "run.json").write_text(json.dumps(record))
        self.journal = Journal(self.path / "metrics.jsonl")
        self.run = Run.open(self.path)

    def start(self, step=0, resumed_from=None, **other):
        self.journal.write(
            "start",
            **{
                "job": "4711",
                "world_size": 2,
                "nodes": 1,
                "device": "cuda",
                "device_name": "NVIDIA H100 80GB HBM3",
                "cpus": 16,
                "threads": 8,
                "torch": "2.13.0",
                "hostname": "gpu-017",
                "step": step,
                "epoch": step // STEPS,
                "resumed_from": resumed_from,
                "parameters": 4693962,
                "precision": "bf16",
                "loader": "ffcv",
                **other,
            },
        )

    def train(self):
        """The journal of ``done`` epochs, restarted where asked."""
        self.start()
        wobble = self.random.normal(0, 1, (self.epochs + 1, 4))
        for epoch in range(1, self.done + 1):
            if epoch in self.restarts:
                self.journal.write("stop", reason="interrupted", message="SIGUSR2")
                self.start((epoch - 1) * STEPS + 130, f"step_{(epoch - 1) * STEPS + 130:08d}", hostname="gpu-018")
            cycle = (epoch - 1) % 15 / 15
            rate = 5e-4 * (1 + math.cos(math.pi * cycle))
            fall = math.exp(-epoch / 9) + 0.12 * (1 - cycle) * math.exp(-epoch / 40)
            evaluated = epoch % self.evaluate_every == 0 or epoch == self.epochs
            top1 = min(0.999, 0.925 - 0.55 * fall + 0.004 * wobble[epoch, 0])
            row = {
                "epoch": epoch,
                "step": epoch * STEPS,
                "lr": rate,
                "train_loss": 0.52 + 1.45 * fall + 0.004 * wobble[epoch, 1],
                "train_top1": 0.97 - 0.6 * fall,
                "test_loss": 0.5 + 1.4 * fall + 0.02 * abs(wobble[epoch, 2]),
                "test_top1": top1,
                "val_loss": None,
                "val_top1": None,
                "images_per_s": 21034.5 + epoch,
                "data_wait_pct": 1.2,
                "train_s": 2.4,
                "eval_s": 0.2,
                "peak_memory_mb": 2345.0,
                "clock_s": 2.6 * epoch,
            }
            if self.validation:
                row |= {"val_loss": row["test_loss"] + 0.03, "val_top1": top1 - 0.008}
            if not evaluated:
                row |= dict.fromkeys(("test_loss", "test_top1", "val_loss", "val_top1"))
            self.journal.write("epoch", **row)
        return self

    def finish(self, *, accuracy=0.91, arrays=True):
        """Predictions, the final row, data.json, and the prepared arrays they came from."""
        labels = np.arange(self.images) % len(self.classes)
        wrong = self.random.random(self.images) > accuracy - 0.08 * (labels % 4 == 3)
        shift = 1 + self.random.geometric(0.55, self.images) % max(1, len(self.classes) - 1)
        predicted = np.where(wrong, (labels + shift) % len(self.classes), labels)
        self.confusion = np.zeros((len(self.classes),) * 2, np.int64)
        np.add.at(self.confusion, (labels, predicted), 1)
        confidence = np.clip(0.98 - 0.3 * self.random.random(self.images), 0, 1).astype(np.float32)
        np.savez(
            self.path / "predictions.npz",
            index=np.arange(self.images),
            label=labels,
            predicted=predicted,
            confidence=confidence,
        )
        self._data(labels, arrays)
        rows = [row for row in map(json.loads, self.journal.path.read_text().splitlines()) if row["event"] == "epoch"]
        tests = [row for row in rows if row["test_top1"] is not None]
        best = max(tests, key=lambda row: row["test_top1"])
        self.journal.write(
            "final",
            split="test",
            top1=float((labels == predicted).mean()),
            loss=tests[-1]["test_loss"],
            top1_best=best["test_top1"],
            best_epoch=best["epoch"],
            confusion=self.confusion,
            classes=self.classes,
            clock_s=rows[-1]["clock_s"],
            parameters=4693962,
        )
        self.journal.write("stop", reason="finished", message="")
        return self

    def _data(self, labels, arrays):
        size = self.run.config.data.image_size
        split = manifest.Split(self.images, "test.beton", "0" * 64, 1, "test_images.npy", "test_labels.npy", {})
        made = manifest.Manifest(
            name="cifar10",
            kind="cifar10",
            source="fake",
            classes=tuple(self.classes),
            image_size=size,
            writer={},
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            splits={"train": split, "test": split},
            fixed_size=True,
        )
        (self.path / "data.json").write_text(json.dumps(manifest.manifest_to_dict(made)))
        if not arrays:
            return
        folder = manifest.dataset_dir(self.run.config.data)
        folder.mkdir(parents=True)
        y, x = np.mgrid[:size, :size] / size
        hue = labels[:, None, None] / len(self.classes)
        waves = [
            np.sin(6.3 * (x * (1 + labels[:, None, None] % 3) + y * (labels[:, None, None] % 4) + hue + c / 3))
            for c in range(3)
        ]
        noise = self.random.normal(0, 12, (self.images, size, size, 3))
        images = np.clip(128 + 90 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)
        np.save(folder / "test_images.npy", images)
        np.save(folder / "test_labels.npy", labels)


@pytest.fixture(scope="session")
def make_fake_run():
    """``FakeRun`` itself, for tests that share one run."""
    return FakeRun


@pytest.fixture
def fake_run(tmp_path):
    """Makes a ``FakeRun`` in a folder of its own."""
    made = []

    def make(**options):
        made.append(FakeRun(tmp_path / f"run{len(made)}", **options))
        return made[-1]

    return make
