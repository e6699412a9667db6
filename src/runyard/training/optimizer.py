"""AdamW and Nesterov SGD over parameter groups; the trainer sets their learning rate at each step."""

from __future__ import annotations

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
    """Build the optimizer of all trainable parameters of ``model``, which must already be on its device.

    Norms and biases (parameters of at most one dimension) are a group without decay unless the setting says otherwise.
    It uses the fused kernels of CPU and CUDA: they work elementwise, so results are bit-identical when repeated.
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
    # torch refuses Nesterov without momentum; with momentum 0 the two are the same
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=fused)


def check_optimizer_state(optimizer: torch.optim.Optimizer, actual: object, *, has_stepped: bool) -> None:
    """Verify that ``optimizer`` can load this ``state_dict``. ``has_stepped``: the state is from after a step.

    Raises:
        InvalidCheckpoint: it does not match; the message says where.
    """
    expected = optimizer.state_dict()
    if not isinstance(actual, dict) or actual.keys() != expected.keys() or not isinstance(actual["state"], dict):
        raise InvalidCheckpoint("optimizer is not an optimizer's state")
    for group, own in zip(actual["param_groups"], expected["param_groups"], strict=True):
        check_shape({**group, "lr": own["lr"]}, own, "optimizer.param_groups")  # the trainer sets lr itself
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots = _SLOTS[type(optimizer)] if optimizer.defaults.get("momentum", 1) else set[str]()
    if has_stepped and slots and not actual["state"]:
        raise InvalidCheckpoint("optimizer has no state of its steps")
    for number, entries in actual["state"].items():
        if not isinstance(entries, dict) or entries.keys() != slots or number not in range(len(parameters)):
            raise InvalidCheckpoint(f"optimizer.state.{number} has other entries than {', '.join(sorted(slots))}")
        for name, value in entries.items():
            if name != "step":
                check_shape(value, parameters[number], f"optimizer.state.{number}.{name}")
            elif not isinstance(value, torch.Tensor) or value.ndim:
                raise InvalidCheckpoint(f"optimizer.state.{number}.step is not a number")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
