"""The data model of comparison tables, pages and leaderboards: one run's history, as read from its directory.

Times are in seconds, accuracies are fractions from 0 to 1. ``reading.load_history`` reads a ``RunHistory``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runyard.errors import UserError
from runyard.files import open_within
from runyard.runs.events import Row
from runyard.runs.state import RunState

FlatSettings = dict[str, Any]
FLOAT_MAX = sys.float_info.max  # a larger integer cannot be converted to a float


@dataclass(frozen=True)
class Start:
    """One start of the training program, up to its last sign of life.

    Attributes:
        start_time: Unix seconds when it began to train.
        end_time: Unix seconds of its ``stop`` row; without one, of the last thing that it or its job wrote.
        step, epoch: Where it began: the steps and epochs done before.
        ranks, nodes: The number of processes, and of the machines they ran on.
        device: "cuda" or "cpu".
        threads: Compute threads of each rank.
        end_cause: "finished", "interrupted", "failed", the cause of a requeue ("time limit", "preemption", "crash"),
            or "" if none was recorded.
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
        """CPU cores that compute if there is no GPU, else 0. The data loader's threads are not counted."""
        return self.ranks * self.threads if self.device != "cuda" else 0


@dataclass(frozen=True)
class SavedPredictions:
    """A run's predictions on the test set, by rising index: int64 [n], and float32 [n] for the confidence."""

    index: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True, eq=False)
class RunHistory:
    """One run's history, as read from its directory.

    Attributes:
        id, name: The run's id, and the name of its experiment (the setting ``name``).
        directory: The run's directory, an absolute path.
        settings: The frozen configuration by dotted name: ``{"optim.lr": 0.001, ...}``. Lists stay lists.
        seed: The setting, or None if it is not an integer.
        settings_sha256: Hash of all settings that set runs apart (``identity.separates_runs``), except the seed: equal
            in runs that differ only in seed. A missing setting counts as null.
        edited: Whether config.yaml was changed after the run was created.
        code_sha256: Hash of the sources that the run was submitted with.
        tags: The run's tags at W&B.
        sweep: Id of the sweep that the run belongs to, or None.
        created: Unix seconds.
        state: As far as the directory shows it without asking SLURM (``state_on_disk``).
        message: The reason for the state if there is one: of a failure, or the time of the last sign of life.
        epochs: The number of epochs in the configuration.
        series: float64 [epochs measured] by the journal's names, rising by ``series["epoch"]``, NaN where not
            measured: epoch, step, t (unix seconds), clock_s (the training clock, which stands still between starts),
            train_loss, train_top1, test_loss, test_top1, val_loss, val_top1, lr, grad_norm, images_per_s,
            data_wait_pct, train_s, eval_s, peak_memory_mb, gpu_util_pct, and any other numbers that the version that
            wrote it measured; also gpu_hours and core_hours spent so far, including work that a restart repeated.
            Of a repeated epoch only the last row counts.
        starts: The starts in order; all but the first are restarts.
        final: The journal's ``final`` row (top1, loss, top1_best, best_epoch, confusion, classes, ...), or {}.
        parameters: The number of trainable parameters, or None before the first start.
        broken_lines: Numbers (from 1) of the journal's lines that could not be read.
        last_line_truncated: Whether the journal's last line is one of them and has no end: cut off, or being written.
        data_name: The name of the data set.
        data_sha256: Hash of all its content (the manifest's), or None if data.json is missing or damaged.
        test_sha256: Hash of the test images, labels and classes alone, or None. Paired tests need it to be equal.
        classes: Class names in label order; empty if they are not known.
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
    state: RunState
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
        """The world sizes it was trained with, in order, without repeats: one entry if it never changed."""
        world_sizes = [start.ranks for start in self.starts]
        return tuple(n for i, n in enumerate(world_sizes) if i == 0 or n != world_sizes[i - 1])

    @property
    def restarts(self) -> tuple[Start, ...]:
        return self.starts[1:]

    @property
    def selection_metric(self) -> str:
        """The metric that decides which epoch is best: on the validation set if there is one, else on the test set."""
        return "val_top1" if np.isfinite(self.metric("val_top1")).any() else "test_top1"

    @property
    def last_top1(self) -> float:
        """Test top-1 at the newest evaluation; NaN before the first."""
        measured = self.metric("test_top1")
        measured = measured[np.isfinite(measured)]
        return float(measured[-1]) if len(measured) else finite_or_nan(self.final.get("top1"))

    @property
    def best_top1(self) -> float:
        """Test top-1 at the best epoch. It is optimistic if the test set itself chose it (``selection_metric``)."""
        index = self._best_at()
        return finite_or_nan(self.final.get("top1_best")) if index is None else float(self.metric("test_top1")[index])

    @property
    def best_epoch(self) -> int | None:
        index = self._best_at()
        return None if index is None else int(self.series["epoch"][index])

    @property
    def device(self) -> str:
        """Ranks and device of the last start, as "8 × NVIDIA H200"; "" before the first."""
        return f"{self.starts[-1].ranks} × {self.starts[-1].device_name}" if self.starts else ""

    @property
    def cpu_only(self) -> bool:
        """Whether it never used a GPU: then its cost is in core-hours, which cannot be compared with GPU-hours."""
        return bool(self.starts) and not any(start.gpus for start in self.starts)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours: the duration of each start × its GPUs. Waiting in the queue and starting up are not included."""
        return sum(start.gpus * (start.end_time - start.start_time) for start in self.starts) / 3600

    @property
    def core_hours(self) -> float:
        """Core-hours: the duration of each start without a GPU × its cores."""
        return sum(start.cores * (start.end_time - start.start_time) for start in self.starts) / 3600

    def metric(self, name: str) -> np.ndarray:
        """Return ``series[name]``, float64 [epochs measured], all NaN if the run never measured it."""
        values = self.series.get(name)
        return np.full(len(self.series["epoch"]), np.nan) if values is None else values

    def confusion(self) -> np.ndarray | None:
        """Return int64 [classes, classes], rows true, columns predicted; None before the final evaluation."""
        return confusion_matrix(self.final.get("confusion"))

    def classes_of(self, matrix: np.ndarray) -> tuple[str, ...]:
        """Return the class names for a confusion matrix, or "class 0" and so on if their number does not match."""
        return tuple(class_names(self.classes, len(matrix)))

    def predictions(self) -> SavedPredictions | None:
        """Read predictions.npz, anew at each call; None if it is missing or damaged."""
        try:
            return read_predictions(self.directory)
        except UserError:
            return None

    def _best_at(self) -> int | None:
        scores = self.metric(self.selection_metric)
        scores = np.where(np.isfinite(self.metric("test_top1")), scores, np.nan)
        return int(np.nanargmax(scores)) if np.isfinite(scores).any() else None


def confusion_matrix(cells: object) -> np.ndarray | None:
    """Return a confusion matrix of the journal as int64 [classes, classes]; None if it holds no counts in a square."""
    try:
        matrix = np.array(cells)
    except ValueError:
        return None
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0
    return matrix.astype(np.int64) if square and matrix.dtype.kind in "iu" and matrix.min() >= 0 else None


def class_names(names: Sequence[str], count: int) -> Sequence[str]:
    """Return the names of ``count`` classes: ``names``, or "class 0" and so on if their number does not match."""
    return names if len(names) == count else [f"class {label}" for label in range(count)]


def read_predictions(run: Path) -> SavedPredictions:
    """Read ``predictions.npz`` of the run in this directory.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with open_within(run, "predictions.npz") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = [file[name] for name in ("index", "label", "predicted", "confidence")]
    except FileNotFoundError:
        raise UserError("the run left no predictions.npz") from None
    except Exception as error:  # zipfile, zlib and numpy raise different exceptions for a damaged file
        raise UserError(f"predictions.npz cannot be read ({error})") from None
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1:
        raise UserError("predictions.npz is damaged: its arrays differ in length")
    order = np.argsort(arrays[0], kind="stable")
    return SavedPredictions(*(array[order] for array in arrays))


def finite_or_nan(value: object) -> float:
    """Return the value if it is a finite number, else NaN."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= FLOAT_MAX:
        return float(value)
    return float("nan")
