"""The optimisers: groups, equality with torch's plain ones, bit equality of repeated runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from runyard.config.schema import OptimConfig
from runyard.training import optimizer as optimiser

ADAMW = {
    "name": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.01,
    "decay_norms_and_biases": True,
    "betas": [0.9, 0.999],
    "momentum": None,
    "grad_clip_norm": None,
}
SGD = ADAMW | {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4, "betas": None, "momentum": 0.9}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 2).requires_grad_(False),
        nn.Conv2d(4, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def trained(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 12) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    for step in range(steps):
        optimiser.set_lr(optimizer, 0.01 * (step + 1))
        net(torch.randn(8, 3, 8, 8, generator=rng)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("values", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_norms_and_biases_decay_only_if_the_setting_says_so(values: dict[str, Any]) -> None:
    net = network()
    for decays in (True, False):
        groups = optimiser.build(OptimConfig(**values | {"decay_norms_and_biases": decays}), net).param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        for parameter in net.parameters():
            if parameter.requires_grad:
                wanted = values["weight_decay"] if decays or parameter.ndim > 1 else 0
                assert decay.pop(id(parameter)) == wanted
        assert not decay, "a frozen parameter is optimised"


@pytest.mark.parametrize("values", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_the_update_is_torchs_own(values: dict[str, Any]) -> None:
    ours, theirs = network(), network()
    trainable = [p for p in theirs.parameters() if p.requires_grad]
    plain: torch.optim.Optimizer
    if values is ADAMW:
        plain = torch.optim.AdamW(trainable, weight_decay=0.01, betas=(0.9, 0.999), foreach=False, fused=False)
    else:
        plain = torch.optim.SGD(trainable, weight_decay=5e-4, momentum=0.9, nesterov=True, foreach=False, fused=False)
    got = trained(ours, optimiser.build(OptimConfig(**values), ours))
    for a, b in zip(got, trained(theirs, plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("values", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_two_runs_agree_bit_for_bit_and_another_decay_does_not(values: dict[str, Any]) -> None:
    runs = []
    for decay in (0.01, 0.01, 0.011):
        net = network()
        runs.append(trained(net, optimiser.build(OptimConfig(**values | {"weight_decay": decay}), net)))
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


@pytest.mark.parametrize("values", [ADAMW, SGD], ids=["adamw", "sgd"])
def test_state_carried_to_a_new_optimiser_goes_on_bit_for_bit(values: dict[str, Any]) -> None:
    def go_on(carry: bool) -> list[torch.Tensor]:
        net = network()
        first = optimiser.build(OptimConfig(**values), net)
        trained(net, first)
        second = optimiser.build(OptimConfig(**values), net)
        if carry:
            second.load_state_dict(first.state_dict())
        return trained(net, second)

    net = network()
    straight = optimiser.build(OptimConfig(**values), net)
    trained(net, straight)
    wanted = trained(net, straight)
    assert all(torch.equal(a, b) for a, b in zip(go_on(carry=True), wanted, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(go_on(carry=False), wanted, strict=True))


def test_the_learning_rate_reaches_every_group() -> None:
    optimizer = optimiser.build(OptimConfig(**ADAMW | {"decay_norms_and_biases": False}), network())
    optimiser.set_lr(optimizer, 0.0123)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0123, 0.0123]


def test_momentum_zero_is_plain_gradient_descent() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    holder = nn.Module()
    holder.weight = weight
    optimizer = optimiser.build(OptimConfig(**SGD | {"momentum": 0.0, "weight_decay": 0.0, "lr": 0.5}), holder)
    for _ in range(2):
        weight.grad = torch.ones(2, 2)
        optimizer.step()
    assert torch.equal(weight.detach(), torch.zeros(2, 2))
