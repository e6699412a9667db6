"""Batch norm over all ranks computes what torch's own does over the whole batch."""

from __future__ import annotations

import torch
from torch import nn

from runyard.models.layers import sync_batch_norm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    norms = nn.BatchNorm2d(8), nn.BatchNorm1d(8 * 36, momentum=None)
    return nn.Sequential(nn.Conv2d(3, 8, 3), norms[0], nn.ReLU(), nn.Flatten(), norms[1])


def test_on_one_rank_outputs_gradients_and_running_statistics_are_those_of_float64() -> None:
    ours, exact = sync_batch_norm.convert(network(), torch.device("cpu")), network().double()
    images = torch.randn(16, 3, 8, 8)
    for _ in range(2):
        a, b = ours(images), exact(images.double())
        a.square().mean().backward()
        b.square().mean().backward()
        assert torch.allclose(a.double(), b, atol=1e-5)
    for (name, p), q in zip(ours.named_parameters(), exact.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.allclose(p.grad.double(), q.grad, atol=1e-5), name
    for (name, x), y in zip(ours.named_buffers(), exact.named_buffers(), strict=True):
        assert torch.allclose(x.double(), y[1].double(), atol=1e-6), name
    assert ours.state_dict().keys() == exact.state_dict().keys()


def test_in_evaluation_it_is_torchs_own() -> None:
    ours, plain = sync_batch_norm.convert(network(), torch.device("cpu")), network()
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(ours.eval()(images), plain.eval()(images))
