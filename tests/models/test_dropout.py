"""Dropout's mask depends on seed, step, layer and sample, and on nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from runyard.models.layers.dropout import SampleDropout


def network(p: float = 0.3) -> tuple[nn.Sequential, SampleDropout]:
    made = nn.Sequential(nn.Dropout(p), nn.Dropout(0.0), nn.Dropout(p))
    first = SampleDropout.convert(made)
    assert first is not None
    return made, first


def mask(layer: int, indices: list[int], seed: int = 0, step: int = 0, width: int = 4096) -> Tensor:
    made, first = network()
    first.set_step(seed, step, torch.tensor(indices))
    return made[layer](torch.ones(len(indices), width))  # type: ignore[no-any-return]


def test_a_sample_has_the_same_mask_in_whatever_batch_it_comes() -> None:
    together, part = mask(0, [5, 6, 7, 8]), mask(0, [8, 5])
    assert torch.equal(part, together[[3, 0]])


@pytest.mark.parametrize(
    "other",
    [mask(0, [6]), mask(0, [5], step=1), mask(0, [5], seed=1), mask(2, [5])],
    ids=["sample", "step", "seed", "layer"],
)
def test_another_sample_step_seed_or_layer_has_another_mask(other: Tensor) -> None:
    """Two masks agree where both keep or both drop: 0.7² + 0.3² of the places, by chance."""
    agree = float((other == mask(0, [5])).float().mean())
    assert agree == pytest.approx(0.58, abs=0.04)


def test_the_part_that_is_dropped_is_p_and_the_expectation_stays() -> None:
    out = mask(0, list(range(256)))
    assert float((out == 0).float().mean()) == pytest.approx(0.3, abs=0.002)
    assert float(out.mean()) == pytest.approx(1, abs=0.003)
    columns = (out == 0).float().mean(0)  # over samples: no element is dropped more often than chance has it
    assert float((columns - 0.3).abs().max()) < 0.17  # six standard deviations
    neighbours = ((out[:, 1:] == 0) & (out[:, :-1] == 0)).float().mean()
    assert float(neighbours) == pytest.approx(0.09, abs=0.002)


def test_in_evaluation_nothing_is_dropped_and_a_layer_of_none_stays_as_it_was() -> None:
    made, _ = network()
    x = torch.randn(3, 7)
    assert torch.equal(made.eval()(x), x)
    assert type(made[1]) is nn.Dropout
    assert SampleDropout.convert(nn.Sequential(nn.Dropout(0.0), nn.Linear(2, 2))) is None


def test_where_samples_do_not_lie_first_torchs_own_mask_is_taken() -> None:
    made, first = network()
    first.set_step(0, 0, torch.arange(4))
    assert made(torch.ones(9, 4, 5)).shape == (9, 4, 5)
