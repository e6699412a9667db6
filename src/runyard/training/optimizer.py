"""AdamW and Nesterov SGD over parameter groups; the loop sets their learning rate at each step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from runyard.config.schema import OptimConfig
from runyard.runs.saved_checkpoints import InvalidCheckpoint
from runyard.training.checkpoint import check_shape

_SLOTS: dict[type, set[str]] = {
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
}


def build(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all trainable parameters of ``model``, which must already be on its device.

    Norms and biases (parameters of at most one dimension) are a group without decay unless the setting says otherwise.
    The fused kernels of CPU and CUDA are used: elementwise, so bit for bit repeatable.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if config.decay_norms_and_biases:
        groups = [{"params": trainable, "weight_decay": config.weight_decay}]
    else:
        groups = [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in trainable)
    if config.name == "adamw":
        assert config.betas is not None
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), fused=fused)
    assert config.momentum is not None
    # torch refuses Nesterov without momentum; with momentum 0 the two are the same thing
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=fused)


def check_optimizer_state(optimizer: torch.optim.Optimizer, found: Any, *, begun: bool) -> None:
    """See that ``optimizer`` can load this ``state_dict``; ``begun`` if it has made a step.

    Raises:
        Unusable: saying what does not fit.
    """
    like = optimizer.state_dict()
    if not isinstance(found, dict) or found.keys() != like.keys() or not isinstance(found["state"], dict):
        raise InvalidCheckpoint("optimizer is no state of an optimizer")
    for group, own in zip(found["param_groups"], like["param_groups"], strict=True):
        check_shape({**group, "lr": own["lr"]}, own, "optimizer.param_groups")  # the loop sets lr itself
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots = _SLOTS[type(optimizer)] if optimizer.defaults.get("momentum", 1) else set[str]()
    if begun and slots and not found["state"]:
        raise InvalidCheckpoint("optimizer remembers nothing of its steps")
    for number, own in found["state"].items():
        if not isinstance(own, dict) or own.keys() != slots or number not in range(len(parameters)):
            raise InvalidCheckpoint(f"optimizer.state.{number} holds other entries than {', '.join(sorted(slots))}")
        for name, value in own.items():
            if name != "step":
                check_shape(value, parameters[number], f"optimizer.state.{number}.{name}")
            elif not isinstance(value, torch.Tensor) or value.ndim:
                raise InvalidCheckpoint(f"optimizer.state.{number}.step is no number")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
