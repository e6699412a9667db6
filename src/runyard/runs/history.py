"""The data model of the table, the page and the leaderboard: one run, as its directory tells it.

Times are seconds, accuracies parts of 1. ``reading.load`` makes a History from a directory.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runyard.files import open_within
from runyard.runs.journal import Row

FlatSettings = dict[str, Any]
FLOAT_MAX = sys.float_info.max  # an integer may be larger, and no float is made of it


@dataclass(frozen=True)
class Start:
    """One start of the training program, to its last sign of life.

    Attributes:
        t: Unix seconds when it began to train.
        ended: Unix seconds of its ``stop``; without one, of the last thing it or its job wrote.
        step, epoch: Where it went on: steps and epochs done before.
        ranks, nodes: Processes, and machines they ran on.
        device: "cuda" or "cpu".
        threads: Threads of computation of each rank.
        ended_by: "finished", "interrupted", "failed", the cause of a requeue ("time limit", "preemption", "crash"),
            or "" where nothing said so.
    """

    start_time: float
    end_time: float
    step: int
    epoch: int
    ranks: int
    nodes: int
    device: str
    device_name: str
    threads: int
    hostname: str
    end_cause: str

    @property
    def gpus(self) -> int:
        return self.ranks if self.device == "cuda" else 0

    @property
    def cores(self) -> int:
        """Cores that compute, where there is no GPU. Loaders' threads are not counted."""
        return self.ranks * self.threads if self.device != "cuda" else 0


@dataclass(frozen=True)
class SavedPredictions:
    """A run's answers on the test set, by rising index: int64 [n], and float32 [n] for the confidence."""

    index: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True, eq=False)
class RunHistory:
    """One run, as its directory tells it.

    Attributes:
        id, name: The run's id, and the name of its experiment (the setting ``name``).
        directory: Its folder, absolute.
        settings: The frozen configuration, flat, by dotted name: ``{"optim.lr": 0.001, ...}``. Lists stay lists.
        seed: The setting, or None where it is no whole number.
        settings_sha256: Of all settings that say what is learned, but for the seed: equal in runs that differ only in
            seed. Settings that only say where (folders, tracking, checkpoints, the cluster's but for how many nodes,
            tasks and GPUs) do not count, and one that is missing counts as null.
        edited: config.yaml is no longer what the run was created with.
        code_sha256: Of the sources it was submitted with.
        tags: W&B's tags of the run.
        sweep: Id of the sweep it is a point of, or None.
        created: Unix seconds.
        state: "finished", "failed", "interrupted" (saved, may be resumed), "waiting" (back in the queue), "running",
            "silent" (unfinished, no sign of life for ten minutes), "pruned" (its search stopped it) or "not started".
        message: Why, for a state that has a reason to give: the failure's, or the last sign of life.
        epochs: Epochs asked for.
        series: float64 [epochs measured] by the journal's names, rising by ``series["epoch"]``, NaN where not
            measured: epoch, step, t (unix seconds), clock_s (training's own clock; it stands between starts),
            train_loss, train_top1, test_loss, test_top1, val_loss, val_top1, lr, grad_norm, images_per_s,
            data_wait_pct, train_s, eval_s, peak_memory_mb, gpu_util_pct, and whatever other numbers the version that
            wrote it measured; and gpu_hours and core_hours, spent up to then, work that a restart repeated included.
            Of a repeated epoch the last.
        starts: In order; all but the first are restarts.
        final: The journal's ``final`` row (top1, loss, top1_best, best_epoch, confusion, classes, ...), or {}.
        parameters: Trainable ones, or None before the first start.
        broken_lines: Numbers of the journal's lines (from 1) that could not be read.
        half_written: The last of them is the journal's last line, without its end: cut off, or being written.
        data_name: The data set's name.
        data_sha256: Identity of all its content (manifest's), or None where data.json is missing or damaged.
        test_sha256: Identity of the test images, labels and classes alone, or None. Paired tests need it equal.
        classes: Class names in label order; empty when the run never said.
    """

    id: str
    name: str
    directory: Path
    settings: FlatSettings
    settings_sha256: str
    edited: bool
    code_sha256: str
    tags: tuple[str, ...]
    sweep: str | None
    created: float
    state: str
    message: str
    series: dict[str, np.ndarray]
    starts: tuple[Start, ...]
    final: Row
    parameters: int | None
    broken_lines: tuple[int, ...]
    last_line_truncated: bool
    data_name: str
    data_sha256: str | None
    test_sha256: str | None
    classes: tuple[str, ...]

    @property
    def seed(self) -> int | None:
        seed = self.settings.get("seed")
        return seed if type(seed) is int else None

    @property
    def epochs(self) -> int | None:
        return self.settings.get("epochs")

    @property
    def epochs_done(self) -> int:
        epochs = self.series["epoch"]
        return int(epochs[-1]) if len(epochs) else 0

    @property
    def ranks(self) -> tuple[int, ...]:
        """Numbers of ranks it was trained on, in turn: of one number throughout (that number,)."""
        every = [start.ranks for start in self.starts]
        return tuple(n for i, n in enumerate(every) if i == 0 or n != every[i - 1])

    @property
    def restarts(self) -> tuple[Start, ...]:
        return self.starts[1:]

    @property
    def selection_metric(self) -> str:
        """The measure that says which epoch is best: on the held-out part if there is one, else on the test set."""
        return "val_top1" if np.isfinite(self.metric("val_top1")).any() else "test_top1"

    @property
    def last_top1(self) -> float:
        """Test top-1 at the newest evaluation; NaN before the first."""
        seen = self.metric("test_top1")
        seen = seen[np.isfinite(seen)]
        return float(seen[-1]) if len(seen) else finite_or_nan(self.final.get("top1"))

    @property
    def best_top1(self) -> float:
        """Test top-1 at the best epoch. Chosen by the test set itself (``selection_metric``), it flatters."""
        at = self._best_at()
        return finite_or_nan(self.final.get("top1_best")) if at is None else float(self.metric("test_top1")[at])

    @property
    def best_epoch(self) -> int | None:
        at = self._best_at()
        return None if at is None else int(self.series["epoch"][at])

    @property
    def device(self) -> str:
        """Ranks and device of the last start, as "8 × NVIDIA H200"; "" before the first."""
        return f"{self.starts[-1].ranks} × {self.starts[-1].device_name}" if self.starts else ""

    @property
    def cpu_only(self) -> bool:
        """It never used a GPU: its cost is core-hours, which are not to be compared with GPU-hours."""
        return bool(self.starts) and not any(start.gpus for start in self.starts)

    @property
    def gpu_hours(self) -> float:
        """Time between starts and their ends × GPUs, h. Waiting in the queue and starting up are not in it."""
        return sum(start.gpus * (start.end_time - start.start_time) for start in self.starts) / 3600

    @property
    def core_hours(self) -> float:
        """The same of starts without a GPU × cores, h."""
        return sum(start.cores * (start.end_time - start.start_time) for start in self.starts) / 3600

    def metric(self, name: str) -> np.ndarray:
        """``series[name]``, or all NaN where the run never measured it."""
        found = self.series.get(name)
        return np.full(len(self.series["epoch"]), np.nan) if found is None else found

    def confusion(self) -> np.ndarray | None:
        """int64 [classes, classes], rows true, columns predicted; None before the final evaluation."""
        try:
            matrix = np.array(self.final.get("confusion"))
        except ValueError:
            return None
        square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0
        return matrix.astype(np.int64) if square and matrix.dtype.kind in "iu" else None

    def classes_of(self, matrix: np.ndarray) -> tuple[str, ...]:
        """Names of a confusion matrix's classes: its own, or "class 0" and so on where they are not as many."""
        fits = len(self.classes) == len(matrix)
        return self.classes if fits else tuple(f"class {label}" for label in range(len(matrix)))

    def predictions(self) -> SavedPredictions | None:
        """Read from predictions.npz at each call; None where it was not kept or is damaged."""
        import zipfile
        import zlib

        try:
            with open_within(self.directory, "predictions.npz") as opened, np.load(opened, allow_pickle=False) as file:
                index, label, predicted, confidence = (file[k] for k in ("index", "label", "predicted", "confidence"))
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
            return None
        if index.ndim != 1 or not index.shape == label.shape == predicted.shape == confidence.shape:
            return None
        order = np.argsort(index, kind="stable")
        return SavedPredictions(index[order], label[order], predicted[order], confidence[order])

    def _best_at(self) -> int | None:
        scores = self.metric(self.selection_metric)
        scores = np.where(np.isfinite(self.metric("test_top1")), scores, np.nan)
        return int(np.nanargmax(scores)) if np.isfinite(scores).any() else None


def finite_or_nan(value: Any) -> float:
    """The finite number, or NaN."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= FLOAT_MAX
    return float(value) if good else float("nan")
