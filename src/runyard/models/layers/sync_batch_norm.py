"""Batch norm over the global batch: with it a network trains the same on any number of ranks, except for rounding."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm


def convert(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch norm of ``network`` by one over all ranks. Parameters and buffers keep their names."""
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-any-return]
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.__class__ = CpuSyncBatchNorm  # the same parameters, buffers and hooks
    return network


class CpuSyncBatchNorm(BatchNorm):
    """``nn.SyncBatchNorm`` for CPUs, which torch's own does not support: mean and variance over all ranks' images.

    All ranks must have equally many. Input [b, C, ...] of any floating-point dtype; output of the same dtype, computed
    in float32. It replaces batch norm on one rank, too: torch's own, on a CPU with channels_last, is a thousand times
    less exact (gradients 1e-4 to 1e-3 from those in float64, measured with torch 2.13), and one rank would not agree
    with four.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        x = input.float()
        reduced_dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean = _MeanOverRanks.apply(x.mean(reduced_dims))
        centered = x - mean.view(shape)
        variance = _MeanOverRanks.apply(centered.square().mean(reduced_dims))  # around the common mean: no cancellation
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            out = centered * (scale * self.weight).view(shape) + self.bias.view(shape)
        else:
            out = centered * scale.view(shape)
        self._update_running(mean.detach(), variance.detach(), x.numel() // x.shape[1] * _world_size())
        return out.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), momentum)


class _MeanOverRanks(torch.autograd.Function):
    """The mean of all ranks' tensors; each rank's gradient is the mean of all ranks' gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return _mean(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return _mean(grad)


def _mean(x: Tensor) -> Tensor:
    if not dist.is_initialized():
        return x.clone()
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x / dist.get_world_size()


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
