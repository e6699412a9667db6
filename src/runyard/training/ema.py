"""The exponential moving average of a network's weights, which is evaluated instead of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages every floating-point parameter and buffer of ``network`` (norm statistics are buffers) at each step.

    The decay is ``min(decay, (1 + step) / (10 + step))``: early averages forget faster, so that the random
    initialization does not last.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        live = {name: t for name, t in (*network.named_parameters(), *network.named_buffers()) if t.is_floating_point()}
        self._names = list(live)
        self._live = [t.detach() for t in live.values()]
        self._average = [t.clone() for t in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages with the weights after optimizer step ``step``, counted from 0."""
        torch._foreach_lerp_(self._average, self._live, 1 - min(self.decay, (1 + step) / (10 + step)))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the network has the averages; afterwards its own weights again, bit-identical."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        live = [t.clone() for t in self._live]  # swap values, not storages: captured graphs keep their addresses
        torch._foreach_copy_(self._live, self._average)
        torch._foreach_copy_(self._average, live)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages by the network's names, not copied, as for ``load_state_dict(state, strict=False)``."""
        return dict(zip(self._names, self._average, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load saved averages.

        Raises:
            ValueError: they belong to another network.
        """
        if set(state) != set(self._names):
            unknown = sorted(set(state) ^ set(self._names))
            raise ValueError(f"averages of another network: only one of the two has {', '.join(unknown[:3])}")
        for name, average in zip(self._names, self._average, strict=True):
            average.copy_(state[name])
