"""The average of the weights: what it holds, that it can be put on and off, saved and gone on from."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from torch import nn

from runyard.training.ema import Ema


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 4, 2))


def train(net: nn.Module, ema: Ema, steps: range) -> None:
    for step in steps:
        rng = torch.Generator().manual_seed(step)
        net(torch.randn(8, 3, 4, 4, generator=rng)).square().mean().backward()
        with torch.no_grad():
            for p in net.parameters():
                assert p.grad is not None
                p -= 0.1 * p.grad
                p.grad = None
        ema.update(step)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.items()}


def test_the_average_is_the_textbooks_and_forgets_faster_at_the_start() -> None:
    net = network()
    ema, wanted = Ema(net, 0.8), copied(net.state_dict())
    for step in range(60):
        train(net, ema, range(step, step + 1))
        decay = min(0.8, (1 + step) / (10 + step))
        wanted = {name: decay * wanted[name] + (1 - decay) * value for name, value in net.state_dict().items()}
    for name, value in ema.state_dict().items():
        torch.testing.assert_close(value, wanted[name])


def test_norm_statistics_are_averaged_and_counters_are_not() -> None:
    names = set(Ema(network(), 0.9).state_dict())
    assert {"1.running_mean", "1.running_var", "0.weight"} <= names
    assert "1.num_batches_tracked" not in names


def test_the_average_is_put_on_inside_the_block_and_taken_off_bit_for_bit() -> None:
    net = network()
    ema = Ema(net, 0.9)
    train(net, ema, range(5))
    live, average = copied(net.state_dict()), copied(ema.state_dict())
    places = [p.data_ptr() for p in net.parameters()]
    with contextlib.suppress(KeyError), ema.applied():
        inside = net.state_dict()
        assert all(torch.equal(inside[name], average[name]) for name in average)
        assert not torch.equal(inside["0.weight"], live["0.weight"])
        raise KeyError  # an evaluation that fails leaves nothing behind
    assert same(net.state_dict(), live)
    assert same(ema.state_dict(), average)
    assert [p.data_ptr() for p in net.parameters()] == places


def test_a_saved_average_goes_on_bit_for_bit_and_a_lost_one_does_not() -> None:
    net = network()
    ema = Ema(net, 0.95)
    train(net, ema, range(20))
    wanted = copied(ema.state_dict())

    def resumed(restore: bool) -> dict[str, torch.Tensor]:
        first = network()
        before = Ema(first, 0.95)
        train(first, before, range(9))
        file = io.BytesIO()
        torch.save({"net": first.state_dict(), "ema": before.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        second = network(seed=5)
        second.load_state_dict(saved["net"])
        after = Ema(second, 0.95)
        if restore:
            after.load_state_dict(saved["ema"])
        train(second, after, range(9, 20))
        return dict(after.state_dict())

    assert same(resumed(restore=True), wanted)
    assert not same(resumed(restore=False), wanted)


def test_the_average_loads_into_a_network_over_its_own_state() -> None:
    net = network()
    ema = Ema(net, 0.9)
    train(net, ema, range(5))
    other = network(seed=3)
    other.load_state_dict(net.state_dict() | ema.state_dict())
    with ema.applied():
        assert same(other.state_dict(), net.state_dict())


def test_averages_of_another_network_are_refused() -> None:
    with pytest.raises(ValueError, match=r"averages of another network: .*3\.bias"):
        Ema(network(), 0.9).load_state_dict(Ema(network()[:3], 0.9).state_dict())
