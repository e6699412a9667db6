"""Times each rank's own work: in synchronous training all steps take as long as the slowest rank's."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from runyard.training.metrics.system_metrics import node_name

SAMPLE_EVERY = 16  # passes on a GPU, where two events cost some microseconds


class StepTimer:
    """Measures the time from the start of a forward pass to its last gradient, before the wait for other ranks."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._passes, self._timed, self._seconds = 0, 0, 0.0
        self._began: float | torch.cuda.Event | None = None  # time.perf_counter(), or an event on a GPU
        self._event_pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def register_hooks(self, wrapped: DistributedDataParallel) -> None:
        """Time every pass of ``wrapped`` from now on."""
        module: nn.Module = wrapped.module  # it is called after rank 0's buffers have arrived
        first = next(p for p in module.parameters() if p.requires_grad)  # its gradient is the last of a backward pass
        module.register_forward_pre_hook(self._begin)
        first.register_post_accumulate_grad_hook(self._end)

    def mean_ms(self, passes: int) -> float | None:
        """Return the mean time of ``passes`` passes since the last call, ms; None if there were none."""
        for start, end in self._event_pairs:
            self._seconds += start.elapsed_time(end) / 1000
        mean_ms = 1000 * passes * self._seconds / self._timed if self._timed else None
        self._timed, self._seconds, self._event_pairs = 0, 0.0, []
        return mean_ms

    def _begin(self, module: nn.Module, args: object) -> None:
        if not torch.is_grad_enabled():
            return
        self._passes += 1
        if not self._on_gpu:
            self._began = time.perf_counter()
        elif self._passes % SAMPLE_EVERY == 0:
            self._began = torch.cuda.Event(enable_timing=True)
            self._began.record()

    def _end(self, parameter: torch.Tensor) -> None:
        if self._began is None:
            return
        if isinstance(self._began, torch.cuda.Event):
            end = torch.cuda.Event(enable_timing=True)
            end.record()
            self._event_pairs.append((self._began, end))
        else:
            self._seconds += time.perf_counter() - self._began
        self._timed, self._began = self._timed + 1, None


def step_times_by_rank(step_ms: float | None, data_ms: float) -> dict[str, object]:
    """Return the ``epoch`` row's ``rank_step_ms`` and ``rank_data_ms``, and the slowest rank.

    These have a number for each rank: its own work and its wait for data per step, ms. Empty with one rank. A
    collective call, with the result on rank 0.
    """
    if not dist.is_initialized():
        return {}
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object((node_name(), step_ms, data_ms), gathered)
    if not gathered or any(step is None for _, step, _ in gathered):
        return {}
    total_ms = [step + data for _, step, data in gathered]
    slowest = max(range(len(gathered)), key=total_ms.__getitem__)
    return {
        "rank_step_ms": [round(step, 3) for _, step, _ in gathered],
        "rank_data_ms": [round(data, 3) for _, _, data in gathered],
        "slowest_rank": slowest,
        "slowest_node": gathered[slowest][0],
        "slowest_to_median": total_ms[slowest] / max(statistics.median(total_ms), 1e-9),
    }
