"""Training counters on the device, and the result of evaluating a split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


class Counters:
    """Sums of loss, correct predictions, images, gradient norms and their number: float64, on the device.

    They are copied to the host only on request.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)

    def add(self, loss_sum: Tensor, correct: Tensor, images: int) -> None:
        """Add a micro-batch: ``loss_sum`` float scalar over its images, ``correct`` integer scalar. No host sync."""
        self._sums[:3].add_(
            torch.stack([loss_sum.double(), correct.double(), torch.full_like(correct, images, dtype=torch.float64)])
        )

    def add_norm(self, grad_norm: Tensor) -> None:
        """Add an optimizer step's gradient norm, a float scalar, unless it is not finite. No host sync.

        To be called on one rank only: all ranks have the same norm.
        """
        self._sums[3].add_(grad_norm.nan_to_num(nan=0, posinf=0))
        self._sums[4].add_(grad_norm.isfinite())

    def gather(self) -> None:
        """Add up all ranks' sums on rank 0 and set the others' to zero. A collective call."""
        if dist.is_initialized():
            dist.all_reduce(self._sums)
            if dist.get_rank() != 0:
                self._sums.zero_()

    def mean(self) -> tuple[float, float, float | None]:
        """Return mean loss and top-1 over the images of all ranks, and the mean gradient norm.

        The latter is over the steps with a finite norm, None if there were none. A collective call, and a host sync.
        """
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


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """The predictions for a split: int64 index, label, predicted and float32 confidence, each [N], in data order.

    ``loss`` and ``top1`` are over all ranks; the arrays have all samples on rank 0 and are empty on other ranks.
    """

    loss: float
    top1: float
    index: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray

    def confusion(self, classes: int) -> list[list[int]]:
        """Return the confusion matrix: rows are the true classes, columns the predicted ones."""
        flat = np.bincount(self.label * classes + self.predicted, minlength=classes * classes)
        return [[int(n) for n in row] for row in flat.reshape(classes, classes)]
