"""The journal's gradient norm is that of each step's whole gradient before clipping, and clipping is as it was."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from runyard.config.schema import Config
from runyard.data import manifest
from runyard.data.loading import loaders
from runyard.runs.run import Run
from runyard.training.distributed.launcher import RankInfo
from runyard.training.metrics.counters import Counters
from runyard.training.train_state import TrainState

ALONE = RankInfo(0, 1, 0, 1, "none", "test")
STEPS = 4
Seen = list[list[Tensor]]  # of each step the gradients that the optimiser was given


def learned(config: Config, scale: float | None = None, overflow_at: int | None = None) -> tuple[TrainState, Seen]:
    """A learner after some steps; ``scale`` is its gradient scaler's, if it has one."""
    torch.manual_seed(0)
    folder = manifest.dataset_dir(config.data)
    data = manifest.load_manifest(folder)
    loader = loaders.train_loader(config, data, folder, rank=0, world_size=1, device=ALONE.device)
    train_state, seen = TrainState(config, data, ALONE, loader.steps), Seen()
    if scale is not None:
        train_state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)  # type: ignore[attr-defined]
    weight = next(p for p in train_state.network.parameters() if p.requires_grad)
    weight.register_hook(lambda gradient: gradient * (math.inf if train_state.step == overflow_at else 1))
    train_state.optimizer.register_step_pre_hook(
        lambda *_: seen.append([p.grad.clone() for p in trainable(train_state)])
    )
    train_state.wrap_ddp()
    for _, micro_batches in zip(range(STEPS), loader.epoch(0), strict=False):
        train_state.train_step(micro_batches)
    loader.close()
    return train_state, seen


def trainable(train_state: TrainState) -> list[Tensor]:
    return [p for p in train_state.network.parameters() if p.grad is not None]


def norm(gradients: list[Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def told(train_state: TrainState) -> float:
    value = train_state.counters.mean()[2]
    assert value is not None
    return value


@pytest.mark.parametrize("accumulate", [1, 4])
def test_it_is_the_mean_over_the_steps_of_the_whole_gradients_norm(
    make_run: Callable[..., Run], accumulate: int
) -> None:
    train_state, seen = learned(make_run(f"accumulate={accumulate}", "precision=fp32").config)
    norms = [norm(gradients) for gradients in seen]
    assert len(set(norms)) == STEPS
    assert told(train_state) == pytest.approx(sum(norms) / STEPS, rel=1e-6)


def test_it_is_of_the_gradient_before_clipping_and_clipping_is_torchs_own(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_run("optim.grad_clip_norm=0.01", "precision=fp32").config
    train_state, seen = learned(config)
    assert [norm(gradients) for gradients in seen] == pytest.approx([0.01] * STEPS, rel=1e-2)
    assert told(train_state) > 0.1

    def in_one(parameters: object, clip: float, total: Tensor) -> None:
        nn.utils.clip_grad_norm_(parameters, clip)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.utils, "clip_grads_with_norm_", in_one)
    torchs = learned(config)[1]
    assert all(torch.equal(a, b) for x, y in zip(seen, torchs, strict=True) for a, b in zip(x, y, strict=True))


def test_it_is_free_of_the_gradient_scalers_scale(make_run: Callable[..., Run]) -> None:
    config = make_run("precision=fp32").config
    assert told(learned(config, scale=2.0**14)[0]) == told(learned(config)[0])


def test_a_step_that_the_scaler_skips_is_left_out(make_run: Callable[..., Run]) -> None:
    train_state, seen = learned(make_run("precision=fp32").config, scale=2.0**14, overflow_at=2)
    finite = [n for gradients in seen if math.isfinite(n := norm(gradients))]
    assert len(finite) == STEPS - 1
    assert told(train_state) == pytest.approx(sum(finite) / (STEPS - 1), rel=1e-6)
    assert all(bool(p.isfinite().all()) for p in train_state.network.parameters())


def test_norms_that_are_no_numbers_are_left_out_and_without_any_other_there_is_none() -> None:
    counters = Counters(torch.device("cpu"))
    for value in (math.inf, math.nan):
        counters.add_norm(torch.tensor(value))
    assert counters.mean()[2] is None
    for value in (1.0, math.nan, 2.0):
        counters.add_norm(torch.tensor(value))
    assert counters.mean()[2] == 1.5
    counters.reset()
    assert counters.mean()[2] is None
