"""AdamW and Nesterov SGD over parameter groups; the loop sets their learning rate at each step."""

from __future__ import annotations

import torch
from torch import nn

from runyard.config import OptimConfig


def build(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all trainable parameters of ``model``, which must already be on its device.

    Norms and biases (parameters of at most one dimension) are a group without decay unless the setting says otherwise.
    The fused kernels of CPU and CUDA are used: elementwise, so bit for bit repeatable.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if config.decay_norms_and_biases:
        groups = [{"params": trainable, "weight_decay": config.weight_decay}]
    else:
        groups = [{"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
                  {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0}]
        groups = [g for g in groups if g["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trainable)
    if config.name == "adamw":
        assert config.betas is not None
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), fused=fused)
    assert config.momentum is not None
    # torch refuses Nesterov without momentum; with momentum 0 the two are the same thing
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
