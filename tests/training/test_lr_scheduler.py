"""The learning rate: its curves, its bounds, its independence of history."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from runyard.config.schema import Config, ScheduleConfig
from runyard.training.lr_scheduler import learning_rate

PEAK, STEPS = 0.3, 20


def config(name: str, epochs: int = 9, **changed: Any) -> Config:
    values: dict[str, Any] = {
        "period_epochs": 3.0 if name == "cosine_restarts" else None,
        "final_lr_fraction": 0.0,
        "peak_fraction": 0.25 if name == "one_cycle" else None,
        "warmup_epochs": 0.0,
    } | changed
    schedule = ScheduleConfig(name=name, **values)  # type: ignore[arg-type]
    return cast(Config, SimpleNamespace(epochs=epochs, optim=SimpleNamespace(lr=PEAK), schedule=schedule))


def curve(c: Config, steps: int = STEPS) -> list[float]:
    return [learning_rate(c, step, steps) for step in range(c.epochs * steps)]


VARIANTS = [
    config("cosine_restarts"),
    config("cosine"),
    config("cosine_restarts", period_epochs=2.5, final_lr_fraction=0.1, warmup_epochs=0.7),
    config("cosine", final_lr_fraction=0.05, warmup_epochs=2.0),
    config("one_cycle"),
    config("one_cycle", peak_fraction=0.01, final_lr_fraction=0.07),
    config("one_cycle", peak_fraction=0.99),
    config("constant"),
    config("constant", warmup_epochs=1.5),
]


def torchs(scheduler: Any, epochs: int, **settings: Any) -> list[float]:
    """What torch's scheduler, stepped once per epoch, gives each epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    its = scheduler(optimizer, **settings)
    out = []
    for _ in range(epochs):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        its.step()
    return out


@pytest.mark.parametrize(("period", "final"), [(15, 0.0), (10, 0.0), (7, 0.1)])
def test_cosine_restarts_is_torchs_where_epochs_begin(period: int, final: float) -> None:
    c = config("cosine_restarts", epochs=50, period_epochs=float(period), final_lr_fraction=final)
    wanted = torchs(torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, 50, T_0=period, eta_min=final * PEAK)
    assert curve(c)[::STEPS] == pytest.approx(wanted, abs=1e-12)
    assert curve(c)[1::STEPS] != pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_is_torchs_where_epochs_begin(final: float) -> None:
    wanted = torchs(torch.optim.lr_scheduler.CosineAnnealingLR, 30, T_max=30, eta_min=final * PEAK)
    assert curve(config("cosine", epochs=30, final_lr_fraction=final))[::STEPS] == pytest.approx(wanted, abs=1e-12)


def test_one_cycle_is_a_triangle_from_near_zero_to_the_peak_and_back() -> None:
    rates = curve(config("one_cycle", epochs=10))
    top = rates.index(max(rates))
    assert (top, rates[top]) == (50, PEAK)
    rises, falls = [b - a for a, b in pairwise(rates[:51])], [a - b for a, b in pairwise(rates[50:])]
    assert rises == pytest.approx([PEAK / 51] * 50)
    assert falls == pytest.approx([PEAK / 150] * 149)
    assert rates[-1] == pytest.approx(PEAK / 150)


def test_constant_is_constant() -> None:
    assert set(curve(config("constant"))) == {PEAK}


def test_warm_up_is_a_straight_line_that_the_curve_takes_over_at_its_peak() -> None:
    rates = curve(config("cosine", warmup_epochs=2.0))
    assert rates[:41] == pytest.approx([PEAK * (step + 1) / 41 for step in range(41)])
    assert rates[40] == max(rates) == PEAK


@pytest.mark.parametrize("c", VARIANTS, ids=lambda c: f"{c.schedule.name}")
@pytest.mark.parametrize("steps", [1, 2, 20, 97])
def test_every_rate_is_finite_above_zero_and_at_most_the_peak(c: Config, steps: int) -> None:
    assert all(math.isfinite(rate) and 0 < rate <= PEAK for rate in curve(c, steps))


@pytest.mark.parametrize("c", VARIANTS, ids=lambda c: f"{c.schedule.name}")
def test_no_step_changes_the_rate_by_a_jump_but_a_restart_does(c: Config) -> None:
    steps = 400
    jumps = [i for i, (a, b) in enumerate(pairwise(curve(c, steps)), 1) if abs(b - a) > 0.03 * PEAK]
    if c.schedule.name != "cosine_restarts":
        assert not jumps
        return
    warm, period = round(c.schedule.warmup_epochs * steps), round((c.schedule.period_epochs or 0) * steps)
    assert jumps == list(range(warm + period, c.epochs * steps, period))


@pytest.mark.parametrize("c", VARIANTS, ids=lambda c: f"{c.schedule.name}")
def test_a_resumed_run_meets_the_same_rates_in_any_order(c: Config) -> None:
    whole = curve(c)
    assert [learning_rate(c, step, STEPS) for step in range(100, len(whole))] == whole[100:]
    assert [learning_rate(c, step, STEPS) for step in reversed(range(len(whole)))] == whole[::-1]


def test_a_whole_training_of_one_step_learns() -> None:
    for name in ("cosine_restarts", "cosine", "one_cycle", "constant"):
        assert learning_rate(config(name, epochs=1), 0, 1) == PEAK
