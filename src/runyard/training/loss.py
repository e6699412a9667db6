"""Label-smoothed cross entropy, and the mixing of images (mixup, cutmix) that belongs to it.

Partners are neighbors in the batch (2i with 2i+1), and the random numbers depend only on (seed, step): the same images
are mixed in the same way on any number of ranks. They are drawn on the host, so nothing waits for the device.
Sources: mixup, arXiv 1710.09412; cutmix, arXiv 1905.04899.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from runyard.config.schema import LossConfig

_STREAM = 0x6D6978  # "mix": separates these random numbers from others with the same two keys


class Targets(NamedTuple):
    """The classes in each image: ``labels`` with ``label_weight``, and ``partner_labels`` with the remaining weight.

    Both are int64 [b].
    """

    labels: Tensor
    partner_labels: Tensor | None = None  # None if nothing was mixed in
    label_weight: float = 1.0

    @property
    def majority_labels(self) -> Tensor:
        """The label of the larger part of each image, int64 [b]: top-1 is counted against it."""
        return self.labels if self.partner_labels is None or self.label_weight >= 0.5 else self.partner_labels


def mix_batch(images: Tensor, labels: Tensor, config: LossConfig, seed: int, step: int) -> tuple[Tensor, Targets]:
    """Mix each image with its neighbor as configured, and return the images and targets; unchanged without a setting.

    Args:
        images: Normalized, float [b, 3, S, S], with an even b if anything is mixed; the memory format is kept.
        labels: int64 [b].
        step: The optimizer step, the same on all ranks and micro-batches.
    """
    if not config.mixup_alpha and not config.cutmix_alpha:
        return images, Targets(labels)
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, step], np.uint64), counter=[0, 0, 0, _STREAM]))
    cut = bool(rng.random() < 0.5) if config.mixup_alpha and config.cutmix_alpha else bool(config.cutmix_alpha)
    alpha = config.cutmix_alpha if cut else config.mixup_alpha
    weight = float(rng.beta(alpha, alpha))
    pairs = images.unflatten(0, (-1, 2))
    partners = labels.view(-1, 2).flip(1).flatten()
    if not cut:
        return pairs.lerp(pairs.flip(1), 1 - weight).flatten(0, 1), Targets(labels, partners, weight)
    top, bottom, left, right = cutmix_box(rng, weight, images.shape[2], images.shape[3])
    mixed = images.clone()
    mixed.unflatten(0, (-1, 2))[..., top:bottom, left:right] = pairs[..., top:bottom, left:right].flip(1)
    weight = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    return mixed, Targets(labels, partners, weight)


def cutmix_box(rng: np.random.Generator, weight: float, height: int, width: int) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right (px) of a box with a uniform center and ``1 - weight`` of the area, clipped."""
    side = math.sqrt(1 - weight)
    y, x = rng.random(2) * (height, width)
    edges = [
        round(float(np.clip(center + sign * side * size / 2, 0, size)))
        for center, size in ((y, height), (x, width))
        for sign in (-1, 1)
    ]
    return edges[0], edges[1], edges[2], edges[3]


class Loss:
    """Mean cross entropy in float32. With ``label_smoothing`` s the target is 1 - s plus s spread over all classes."""

    def __init__(self, config: LossConfig) -> None:
        self.label_smoothing = config.label_smoothing

    def __call__(self, logits: Tensor, targets: Targets | Tensor) -> Tensor:
        """Return the scalar loss of logits [b, classes] against ``Targets`` or plain labels int64 [b]."""
        if isinstance(targets, Tensor):
            targets = Targets(targets)
        logits = logits.float()
        loss = F.cross_entropy(logits, targets.labels, label_smoothing=self.label_smoothing)
        if targets.partner_labels is None:
            return loss
        partner_loss = F.cross_entropy(logits, targets.partner_labels, label_smoothing=self.label_smoothing)
        return loss * targets.label_weight + partner_loss * (1 - targets.label_weight)
