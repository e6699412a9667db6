"""The running average of a network's weights, evaluated instead of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages every floating-point parameter and buffer of ``network`` (norm statistics are buffers), step by step.

    Early averages forget faster, decay ``min(decay, (1 + step) / (10 + step))``, or the random start would last.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        live = {name: t for name, t in (*network.named_parameters(), *network.named_buffers()) if t.is_floating_point()}
        self._names = list(live)
        self._live = [t.detach() for t in live.values()]
        self._average = [t.clone() for t in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step ``step``, counted from 0."""
        torch._foreach_lerp_(self._average, self._live, 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the network holds the average; after it, bit for bit what it held before."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        kept = [t.clone() for t in self._live]  # values move, storages stay: captured graphs keep their addresses
        torch._foreach_copy_(self._live, self._average)
        torch._foreach_copy_(self._average, kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the network's names, no copies; ``network.load_state_dict(state, strict=False)`` reads it."""
        return dict(zip(self._names, self._average, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from saved averages.

        Raises:
            ValueError: they belong to another network.
        """
        if set(state) != set(self._names):
            unknown = sorted(set(state) ^ set(self._names))
            raise ValueError(f"averages of another network: only one of the two has {', '.join(unknown[:3])}")
        for name, average in zip(self._names, self._average, strict=True):
            average.copy_(state[name])
