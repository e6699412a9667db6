"""--where keeps the runs that fit, and refuses what it does not understand."""

from __future__ import annotations

import numpy as np
import pytest

from runyard.analysis.compare.measures import first_at_target, parse_accuracy, parse_decimal
from runyard.analysis.compare.where import parse_conditions
from runyard.errors import UserError
from runyard.runs.results.history import RunHistory
from tests.support.fake_runs import Make


@pytest.fixture
def runs(make: Make) -> list[RunHistory]:
    return [
        make(0.90, lr=1e-3, seed=0),
        make(0.92, lr=3e-3, seed=1, settings={"optim.grad_clip_norm": 1.0, "model.name": "starter"}),
        make(0.94, lr=1e-2, seed=2, done=5, end="failed", settings={"model.name": "my and yours"}),
    ]


@pytest.mark.parametrize(
    ("condition", "seeds"),
    [
        ("optim.lr<3e-3", [0]),
        ("optim.lr <= 3e-3", [0, 1]),
        ("optim.lr>1e-3", [1, 2]),
        ("optim.lr>=0.003", [1, 2]),
        ("optim.lr=0.003", [1]),
        ("optim.lr==3e-3", [1]),
        ("optim.lr!=3e-3", [0, 2]),
        ("model.name=starter", [1]),
        ("model.name='starter'", [1]),
        ("model.name!=starter", [0, 2]),
        ("last>=91%", [1]),
        ("last>=0.9", [0, 1]),
        ("state=failed", [2]),
        ("state=finished and optim.lr>0.001", [1]),
        ("epochs_done<10", [2]),
        ("optim.grad_clip_norm=null", [0, 2]),
        ("optim.grad_clip_norm>0", [1]),
        ("channels_last=true", [0, 1, 2]),
        ("channels_last=1", []),
        ("channels_last!=true", []),
        ("augment.hue=false", []),
        ("optim.betas=[0.9,0.999]", [0, 1, 2]),
        ("name=paper", [0, 1, 2]),
        ("gpu_hours<1", [0, 1, 2]),
        ("core_hours>0", []),
    ],
)
def test_a_condition_keeps_exactly_the_runs_that_fit(runs: list[RunHistory], condition: str, seeds: list[int]) -> None:
    conditions = parse_conditions([condition], runs)
    assert [run.seed for run in runs if all(c.matches(run) for c in conditions)] == seeds


def test_a_percentage_is_the_number_that_it_says_to_the_last_bit() -> None:
    for hundredths in range(1, 10_001):
        text = f"{hundredths // 100}.{hundredths % 100:02}"
        assert parse_decimal(f"{text}%") == parse_accuracy(f"{text} %") == hundredths / 10_000


def test_dividing_by_a_hundred_would_miss_it() -> None:
    assert float("99.62") / 100 > 0.9962 == parse_decimal("99.62%")
    assert parse_decimal("9e1%") == parse_decimal("0.9") == 0.9
    for text in ("%", "high%", "1e9999999999999999999999%"):
        with pytest.raises(ValueError, match=text):
            parse_decimal(text)


def test_a_run_that_stands_exactly_at_a_percentage_meets_it(make: Make) -> None:
    run = make(0.9962)
    (condition,) = parse_conditions(["last>=99.62%"], [run])
    assert condition.matches(run)
    assert first_at_target(run, parse_accuracy("99.62%")).epoch == 10
    assert first_at_target(run, parse_accuracy("99.63%")).epoch == np.inf


def test_several_conditions_all_have_to_hold(runs: list[RunHistory]) -> None:
    conditions = parse_conditions(["optim.lr>1e-3", "seed<2"], runs)
    assert [run.seed for run in runs if all(c.matches(run) for c in conditions)] == [1]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("optim.l<1", "did you mean optim.lr"),
        ("lr<1", "did you mean optim.lr"),
        ("lst>0.9", "did you mean last"),
        ("optim.lr", "expected NAME"),
        ("", "expected NAME"),
        ("<3", "expected NAME"),
        ("optim.lr<", "expected NAME"),
        ("optim.lr~3", "expected NAME"),
        ("__import__('os').system('true')", "expected NAME"),
        ("optim.lr<1 and", "expected NAME"),
        ("seed=1 and and", "expected NAME"),
    ],
)
def test_what_is_no_condition_is_refused_with_what_would_be(runs: list[RunHistory], condition: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_conditions([condition], runs)


def test_words_are_neither_more_nor_less(runs: list[RunHistory]) -> None:
    (condition,) = parse_conditions(["model.name<3"], runs)
    with pytest.raises(UserError, match=r"model\.name is paper_resnet .* use = or !="):
        condition.matches(runs[0])
