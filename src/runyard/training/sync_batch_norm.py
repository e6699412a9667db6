"""Batch norm over the global batch: with it a network learns the same on any number of ranks, but for rounding."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class CpuSyncBatchNorm(nn.SyncBatchNorm):
    """torch's own on a CPU, where that refuses to work: mean and variance over the equal shares of all ranks.

    Input [b, C, ...] of any floating type; output of the same type. The variance is summed around the mean of all
    ranks, so that no digits cancel.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        x = input.float()
        over = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean = _mean_over_ranks(x.mean(over))
        centred = x - mean.view(shape)
        variance = _mean_over_ranks(centred.square().mean(over))
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
            out = centred * scale.view(shape) + self.bias.view(shape)
        else:
            out = centred * scale.view(shape)
        self._note(mean.detach(), variance.detach(), x.numel() // x.shape[1] * dist.get_world_size())
        return out.to(input.dtype)

    @torch.no_grad()
    def _note(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), momentum)


def convert(network: nn.Module, device: torch.device) -> nn.Module:
    """``network`` with every batch norm replaced by one over all ranks. Its state has the same names."""
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if device.type == "cpu":
        for module in network.modules():
            if type(module) is nn.SyncBatchNorm:
                module.__class__ = CpuSyncBatchNorm
    return network


def _mean_over_ranks(x: Tensor) -> Tensor:
    summed: Tensor = dist.nn.functional.all_reduce(x)  # its backward sums the gradients of all ranks
    return summed / dist.get_world_size()
