"""Counters that live on the device, and the exact evaluation of a split over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from runyard.data.batch import Batch


class Counters:
    """Sums of loss, correct answers, images, gradient norms and their number; float64, on the device, read only when
    asked for."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)

    def add(self, loss_sum: Tensor, correct: Tensor, images: int) -> None:
        """Add a micro-batch: ``loss_sum`` float scalar over its images, ``correct`` integer scalar. No host sync."""
        self._sums[:3].add_(
            torch.stack([loss_sum.double(), correct.double(), torch.full_like(correct, images, dtype=torch.float64)])
        )

    def add_norm(self, grad_norm: Tensor) -> None:
        """Add an optimiser step's gradient norm, a float scalar; one that is not finite is left out. No host sync.

        On one rank only: all have the same.
        """
        self._sums[3].add_(grad_norm.nan_to_num(nan=0, posinf=0))
        self._sums[4].add_(grad_norm.isfinite())

    def gather(self) -> None:
        """Bring all ranks' sums together on rank 0 and leave zeros elsewhere: one rank's state then holds them all."""
        if dist.is_initialized():
            dist.all_reduce(self._sums)
            if dist.get_rank() != 0:
                self._sums.zero_()

    def mean(self) -> tuple[float, float, float | None]:
        """Mean loss and top-1 over the images of all ranks, and mean gradient norm over the steps that had a finite one
        (None if none had). A collective call, and a host sync."""
        total = self._sums.clone()
        if dist.is_initialized():
            dist.all_reduce(total)
        loss, correct, images, norms, steps = total.tolist()
        return loss / max(images, 1), correct / max(images, 1), norms / steps if steps else None

    def reset(self) -> None:
        self._sums.zero_()

    def state(self) -> Tensor:
        return self._sums

    def restore(self, state: Tensor) -> None:
        self._sums.copy_(state)


class Predictions:
    """What the network said of a split: int64 index, label, predicted and float32 confidence, each [N], in data order.

    ``loss`` and ``top1`` are over all ranks; the arrays hold every sample on rank 0, and its own share on another rank.
    """

    def __init__(
        self,
        loss: float,
        top1: float,
        index: np.ndarray,
        label: np.ndarray,
        predicted: np.ndarray,
        confidence: np.ndarray,
    ) -> None:
        self.loss, self.top1 = loss, top1
        order = np.argsort(index, kind="stable")
        self.index, self.label = index[order], label[order]
        self.predicted, self.confidence = predicted[order], confidence[order]

    def confusion(self, classes: int) -> list[list[int]]:
        """Counts, rows the true class, columns the predicted."""
        flat = np.bincount(self.label * classes + self.predicted, minlength=classes * classes)
        return [[int(n) for n in row] for row in flat.reshape(classes, classes)]


@torch.no_grad()
def evaluate(
    logits_of: Callable[[Tensor], Tensor], batches: Iterable[Batch], device: torch.device, label_smoothing: float
) -> Predictions:
    """Mean cross entropy, top-1 and predictions over all ranks' shares, each sample counted once. A collective call.

    ``logits_of`` maps uint8 images [b, S, S, 3] to logits [b, classes]. The loss is smoothed as in training, so that
    the two curves of figure 1 compare (the paper's do: its test loss lies above the smoothed floor).
    """
    counters, parts = Counters(device), []
    for batch in batches:
        logits = logits_of(batch.images).float()
        confidence, predicted = logits.softmax(1).max(1)
        loss = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="sum", label_smoothing=label_smoothing)
        counters.add(loss, (predicted == batch.labels).sum(), len(batch.labels))
        parts.append((batch.indices, batch.labels, predicted, confidence))
    loss_mean, top1, _ = counters.mean()
    empty = (
        torch.empty(0, dtype=torch.int64),
        torch.empty(0, dtype=torch.int64),
        torch.empty(0, dtype=torch.int64),
        torch.empty(0),
    )
    arrays: list[np.ndarray] = [
        torch.cat([t.cpu() for t in column]).numpy() for column in zip(*(parts or [empty]), strict=True)
    ]
    if dist.is_initialized():
        gathered: list[list[np.ndarray]] = [[] for _ in range(dist.get_world_size())]
        dist.gather_object(arrays, gathered if dist.get_rank() == 0 else None)
        if dist.get_rank() == 0:
            arrays = [np.concatenate(column) for column in zip(*gathered, strict=True)]
    return Predictions(loss_mean, top1, *arrays)
