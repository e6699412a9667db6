"""Dropout whose mask is a pure function of (seed, step, sample): the same on any number of ranks, after any restart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

GOLDEN_RATIO_32 = 0x9E3779B9 - 2**32  # 2**32 divided by the golden ratio, as a signed 32-bit number


class SampleDropout(nn.Dropout):
    """``nn.Dropout`` with a mask of its own for each sample, wherever that is trained.

    The layers of one network share ``samples``, which ``begin`` sets before each forward pass.

    Attributes:
        layer: Number of this layer in its network: layers draw differently.
        samples: int32 [b], a key for each sample of the batch, in a dict that the layers share.
    """

    layer: int
    samples: dict[str, Tensor]

    @staticmethod
    def convert(network: nn.Module) -> SampleDropout | None:
        """Replace the dropout layers of ``network`` that drop anything. Returns one of them, or None without any.

        Other layers that draw for themselves, such as stochastic depth and dropout within attention, stay as they are:
        they draw from torch's generator, which is seeded for each step and rank.
        """
        found = [module for module in network.modules() if type(module) is nn.Dropout and module.p > 0]
        samples: dict[str, Tensor] = {}
        for layer, module in enumerate(found):
            module.__class__ = SampleDropout
            module.layer, module.samples = layer, samples  # type: ignore[assignment]
        return found[0] if found else None  # type: ignore[return-value]

    def set_step(self, seed: int, step: int, indices: Tensor) -> None:
        """The next forward pass of the network is of ``step``, over the samples ``indices``, int64 [b]."""
        start = step_seed(seed, step, rank=0) % 2**31  # the same on all ranks
        keys = _mix((indices.to(torch.int32) + start) * GOLDEN_RATIO_32)
        if (held := self.samples.get("keys")) is not None and held.shape == keys.shape:
            held.copy_(keys)  # in place: a captured graph reads the same memory
        else:
            self.samples["keys"] = keys

    def forward(self, input: Tensor) -> Tensor:
        """[b, ...] with each element dropped (zeroed) with probability ``p``, the others scaled by 1 / (1 - p)."""
        if not self.training:
            return input
        keys = self.samples.get("keys")
        if keys is None or len(keys) != len(input):  # samples do not lie along the first dimension here
            return super().forward(input)
        elements = torch.arange(input[0].numel(), dtype=torch.int32, device=input.device)
        drawn = _mix(keys[:, None] + _mix(elements * GOLDEN_RATIO_32 + self.layer)[None, :]) & 0x7FFFFFFF
        kept = (drawn >= int(self.p * 2**31)).view(input.shape)
        return input * kept * (1 / (1 - self.p))


def _mix(x: Tensor) -> Tensor:
    """Each int32 to another that looks random: the finaliser of MurmurHash3, a permutation of the 32-bit numbers."""
    x = (x ^ x >> 16 & 0xFFFF) * (0x85EBCA6B - 2**32)
    x = (x ^ x >> 13 & 0x7FFFF) * (0xC2B2AE35 - 2**32)
    return x ^ x >> 16 & 0xFFFF


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for each step and rank (the finaliser of splitmix64 over a linear mix of the three)."""
    x = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return (x ^ x >> 31) % 2**63
