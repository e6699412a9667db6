"""Counters that live on the device, and what a network said of a split."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


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


class EvaluationResult:
    """What the network said of a split: int64 index, label, predicted and float32 confidence, each [N], in data order.

    ``loss`` and ``top1`` are over all ranks; the arrays hold every sample on rank 0, and none on another rank.
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
        self.index, self.label, self.predicted, self.confidence = index, label, predicted, confidence

    def confusion(self, classes: int) -> list[list[int]]:
        """Counts, rows the true class, columns the predicted."""
        flat = np.bincount(self.label * classes + self.predicted, minlength=classes * classes)
        return [[int(n) for n in row] for row in flat.reshape(classes, classes)]
