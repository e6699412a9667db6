"""What W&B is told is a function of the journal, and a later row changes no earlier point."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from runyard.config.schema import Config
from runyard.runs import journal
from runyard.runs.events import Event, Row, parse_event
from runyard.tracking.wandb import history as wandb_history
from runyard.tracking.wandb.history import WandbHistory
from tests.support.life import FAILED, FINISHED, INTERRUPTED, begin, epoch, epochs

Told = list[Any]


def rows(*events: tuple[str, dict[str, Any]]) -> list[Row]:
    return [{"event": event, "t": float(at), **fields} for at, (event, fields) in enumerate(events)]


def told(config: Config, lines: list[Row]) -> Told:
    history = WandbHistory(config)
    history.consume(map(parse_event, lines))
    return history.points


@pytest.fixture(scope="module")
def config(make_config: Callable[..., Config]) -> Config:
    return make_config("data=synthetic", "epochs=6")


def a_life(seed: int) -> list[Row]:
    """Starts that end in every way, and go on from an epoch or two before."""
    draw, done, events = random.Random(seed), 0, []
    while done < 6:
        events.append(begin(done))
        last = min(6, done + draw.randint(0, 3))
        events += epochs(done + 1, last)
        done = max(0, last - draw.randint(0, 2)) if last < 6 else 6
        events.append(("warning", {"message": f"w{len(events)}"}))
        events += [draw.choice([INTERRUPTED, FAILED])] * draw.randint(0, 1)
    return rows(*events, begin(6), *FINISHED, *FINISHED)


def changes(config: Config, life: list[Row]) -> list[int]:
    """The lengths of the journal at which what was told before is no longer what would be told."""
    whole = told(config, life)
    return [n for n in range(len(life)) if (part := told(config, life[:n])) != whole[: len(part)]]


@pytest.mark.parametrize("seed", range(20))
def test_what_was_told_stays_so_however_the_journal_goes_on(config: Config, seed: int) -> None:
    assert changes(config, a_life(seed)) == []
    numbers = [point.values["epoch"] for point in told(config, a_life(seed)) if point.final is None]
    assert numbers == [1, 2, 3, 4, 5, 6]
    assert [point.final is not None for point in told(config, a_life(seed))] == [False] * 6 + [True]


def test_the_last_of_a_repeated_epoch_could_not_stay_so(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def takes_the_last(self: WandbHistory, events: Iterable[Event]) -> None:
        for row in journal.epochs(event.row for event in events):
            self._consume_event(parse_event(row))

    monkeypatch.setattr(wandb_history.WandbHistory, "consume", takes_the_last)
    life = rows(begin(), ("epoch", epoch(1)), begin(), ("epoch", epoch(1) | {"train_loss": 0.1}))
    assert changes(config, life) == [2, 3]


def test_taking_row_by_row_tells_the_same_as_taking_all(config: Config) -> None:
    life, history = a_life(3), WandbHistory(config)
    for row in life:
        history.consume([parse_event(row)])
    assert history.points == told(config, life)


@pytest.mark.parametrize(
    ("ending", "status"),
    [([], "running"), ([INTERRUPTED], "interrupted"), ([FAILED], "failed"), ([FAILED, begin(1)], "running")],
)
def test_a_run_stands_as_its_newest_start_ended(config: Config, ending: list[Any], status: str) -> None:
    history = WandbHistory(config)
    history.consume(map(parse_event, rows(begin(), *epochs(1, 1), *ending)))
    assert history.status == status


def test_curves_have_sections_and_what_was_not_measured_is_no_point(config: Config) -> None:
    (point,) = told(config, rows(begin(), ("epoch", epoch(1) | {"grad_norm": 0.25, "gpu_util_pct": 90.0})))
    assert point.values["train/grad_norm"] == 0.25
    assert point.values["speed/gpu_util_pct"] == 90.0
    assert point.values["images"] == 8 * config.batch_size
    assert "val/loss" not in point.values
    assert point.values["_timestamp"] == 1.0


def test_the_best_is_by_validation_where_there_is_one(config: Config) -> None:
    first = epoch(1) | {"val_top1": 0.4, "val_loss": 1.0}
    second = epoch(2) | {"val_top1": 0.3, "val_loss": 0.9}
    point = told(config, rows(begin(), ("epoch", first), ("epoch", second)))[-1]
    assert (point.summary["top1_best"], point.summary["best_epoch"]) == (0.4, 1)
    assert point.summary["val/top1"] == {"max": 0.4, "last": 0.3}
    assert point.summary["val/loss"] == {"min": 0.9, "last": 0.9}


def test_each_node_has_curves_of_its_own(config: Config) -> None:
    nodes = [{"node": "gpu1", "cpu_pct": 30.0, "memory_mb": 5000.0, "gpu_util_pct": 80.0, "gpu_memory_mb": 9000.0},
             {"node": "cpu2", "cpu_pct": None, "memory_mb": 6000.0}]  # fmt: skip
    (point,) = told(config, rows(begin(), ("epoch", epoch(1) | {"nodes": nodes})))
    assert {name: value for name, value in point.values.items() if name.startswith("node/")} == {
        "node/gpu1/cpu_pct": 30.0, "node/gpu1/memory_mb": 5000.0, "node/gpu1/gpu_util_pct": 80.0,
        "node/gpu1/gpu_memory_mb": 9000.0, "node/cpu2/memory_mb": 6000.0,
    }  # fmt: skip


ODD_NODES = [None, 3, {"node": "a"}, [None, 3, {}, {"node": 1, "cpu_pct": 5.0}, {"node": "a", "cpu_pct": "x"}]]


@pytest.mark.parametrize(
    "odd",
    [
        {"epoch": None},
        {"epoch": "2"},
        {"epoch": True},
        {"train_loss": None},
        {"lr": "x"},
        *({"nodes": nodes} for nodes in ODD_NODES),
    ],
)
def test_an_odd_row_costs_no_more_than_what_is_odd_in_it(config: Config, odd: dict[str, Any]) -> None:
    points = told(config, rows(begin(), ("epoch", epoch(2) | odd), ("epoch", epoch(3))))
    assert points[-1].values["epoch"] == 3
    assert not any(isinstance(value, (str, bool, type(None))) for point in points for value in point.values.values())


def test_each_ranks_times_are_curves_and_the_slowest_is_named_in_the_log(config: Config) -> None:
    times = {"rank_step_ms": [10.0, 30.0, 11.0], "rank_data_ms": [0.1, 0.2, 0.3],
             "slowest_rank": 1, "slowest_node": "n2", "slowest_to_median": 2.7}  # fmt: skip
    slow, even = told(config, rows(begin(), ("epoch", epoch(1) | times), ("epoch", epoch(2))))
    assert (slow.values["rank/1/step_ms"], slow.values["rank/2/data_ms"]) == (30.0, 0.3)
    assert (slow.values["speed/slowest_rank"], slow.values["speed/slowest_to_median"]) == (1.0, 2.7)
    assert "rank 1 on n2 takes 2.7x the median rank's time" in slow.lines[-1]
    assert not [name for name in even.values if name.startswith("rank/")]
    assert "median" not in even.lines[-1]
