"""Dropout whose mask is a pure function of (seed, step, sample): the same on any number of ranks, after any restart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GOLDEN_RATIO_32 = 0x9E3779B9 - 2**32  # 2**32 divided by the golden ratio, as a signed 32-bit number


class SampleDropout(nn.Dropout):
    """``nn.Dropout`` with a mask for each sample that does not depend on the rank that trains it.

    The layers of one network share ``samples``, which ``set_step`` sets before each forward pass.

    Attributes:
        layer: The index of this layer in its network, so that layers have different masks.
        samples: A dict that the layers share: its entry "keys" is int32 [b], a key for each sample of the batch.
    """

    layer: int
    samples: dict[str, Tensor]

    @staticmethod
    def convert(network: nn.Module) -> SampleDropout | None:
        """Replace the dropout layers of ``network`` with ``p`` > 0. Returns one of them, or None if there are none.

        Other random layers, such as stochastic depth and dropout within attention, do not change: they draw from
        torch's generator, which is seeded for each step and rank.
        """
        dropouts = [module for module in network.modules() if type(module) is nn.Dropout and module.p > 0]
        samples: dict[str, Tensor] = {}
        for layer, module in enumerate(dropouts):
            module.__class__ = SampleDropout
            module.layer, module.samples = layer, samples  # type: ignore[assignment]
        return dropouts[0] if dropouts else None  # type: ignore[return-value]

    def set_step(self, seed: int, step: int, indices: Tensor) -> None:
        """Set the masks for the next forward pass: at ``step``, over the samples ``indices``, int64 [b]."""
        offset = step_seed(seed, step, rank=0) % 2**31  # the same on all ranks
        keys = _mix((indices.to(torch.int32) + offset) * GOLDEN_RATIO_32)
        if (current := self.samples.get("keys")) is not None and current.shape == keys.shape:
            current.copy_(keys)  # in place: a captured graph reads the same memory
        else:
            self.samples["keys"] = keys

    def forward(self, input: Tensor) -> Tensor:
        """Zero each element of ``input`` [b, ...] with probability ``p``, and scale the others by 1 / (1 - p)."""
        if not self.training:
            return input
        keys = self.samples.get("keys")
        if keys is None or len(keys) != len(input):  # the first dimension is not that of the samples
            return super().forward(input)
        elements = torch.arange(input[0].numel(), dtype=torch.int32, device=input.device)
        random_bits = _mix(keys[:, None] + _mix(elements * GOLDEN_RATIO_32 + self.layer)[None, :]) & 0x7FFFFFFF
        mask = (random_bits >= int(self.p * 2**31)).view(input.shape)
        return input * mask * (1 / (1 - self.p))


def _mix(x: Tensor) -> Tensor:
    """Map each int32 to one that looks random: the finalizer of MurmurHash3, a permutation of the 32-bit integers."""
    x = (x ^ x >> 16 & 0xFFFF) * (0x85EBCA6B - 2**32)
    x = (x ^ x >> 13 & 0x7FFFF) * (0xC2B2AE35 - 2**32)
    return x ^ x >> 16 & 0xFFFF


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return a different seed for each step and rank (the finalizer of splitmix64 of a linear mix of the three)."""
    x = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return (x ^ x >> 31) % 2**63
