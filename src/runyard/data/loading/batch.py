"""The batches that a loader gives to the training loop, and their normalization on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """One micro-batch, or one evaluation batch, of a rank.

    Images stay uint8 until they are on the device, so only a quarter of the bytes of float32 are transferred.
    """

    images: Tensor  # uint8 [b, S, S, 3]
    labels: Tensor  # int64 [b]
    indices: Tensor  # int64 [b], position of each sample in its split


class Normalize(nn.Module):
    """Converts uint8 pixels to float32 with zero mean and unit variance per channel.

    Args:
        mean, std: Per channel in [0, 1], as in the manifest.
    """

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        # not persistent: they belong to the data set, and a checkpoint's weights must not depend on them
        self.register_buffer("mean", torch.tensor(mean).mul(255).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(std).mul(255).reciprocal().view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.scale: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Convert uint8 NHWC [b, S, S, 3] to float32 NCHW [b, 3, S, S] in channels_last memory, on the same device."""
        return images.permute(0, 3, 1, 2).to(torch.float32).sub_(self.mean).mul_(self.scale)
