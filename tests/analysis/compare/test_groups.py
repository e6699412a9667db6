"""Runs that differ only in seed are one row, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from runyard.analysis.compare.groups import differing_settings, format_setting, group_runs
from runyard.analysis.compare.table import table_rows
from runyard.runs.results.history import RunHistory
from runyard.runs.results.reading import load_history
from tests.support.fake_runs import Make


def test_runs_that_differ_only_in_seed_are_one_group_by_rising_seed(make: Make) -> None:
    runs = [make(seed=2), make(seed=0), make(seed=1)]
    (only,) = group_runs(runs)
    assert [run.seed for run in only.runs] == [0, 1, 2]
    assert (only.seed_count, only.label, only.state_text) == (3, "paper", "")
    assert differing_settings([only]) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"optim.lr": 0.003},
        {"model.widths": [1, 2, 3, 4]},
        {"augment.hue": 0.2},
        {"cluster.nodes": 2},
        {"name": "other"},
        {"epochs": 9},
        {"data.validation_fraction": 0.1},
    ],
)
def test_any_other_setting_that_says_what_is_learned_makes_two(make: Make, settings: dict[str, object]) -> None:
    assert len(group_runs([make(seed=0), make(seed=1, settings=settings)])) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"runs_dir": "/elsewhere"},
        {"data.root": "/elsewhere"},
        {"data.path": "/elsewhere"},
        {"data.sources": ["disk"]},
        {"workers": 4},
        {"loader": "torch"},
        {"eval_batch_size": 7},
        {"report": False},
        {"tracking.mode": "none"},
        {"cluster.timeout_min": 7},
        {"checkpoint.every_s": 1.0},
        {"tracking.tags": ["a"]},
    ],
)
def test_settings_that_say_how_and_where_it_runs_do_not(make: Make, settings: dict[str, object]) -> None:
    groups = group_runs([make(seed=0), make(seed=1, settings=settings)])
    assert len(groups) == 1
    assert differing_settings(group_runs([make(seed=0), make(seed=1, settings=settings)], by_run=True)) == []


def test_the_same_settings_on_other_test_images_are_no_repetition(make: Make) -> None:
    groups = group_runs([make(seed=0), make(seed=1), make(seed=0, data="1")])
    assert [g.seed_count for g in groups] == [2, 1]


def test_a_run_that_has_not_met_its_data_yet_goes_with_those_of_its_settings(make: Make) -> None:
    waiting = make(seed=1)
    (waiting.directory / "data.json").unlink()
    assert len(group_runs([make(seed=0), load_history(waiting.directory)])) == 1
    assert (
        len(group_runs([make(seed=0), make(seed=2, data="1"), load_history(waiting.directory)])) == 3
    )  # which one is not known


def test_only_the_settings_that_differ_are_columns_in_the_configurations_order(make: Make) -> None:
    groups = group_runs([make(lr=1e-3), make(lr=3e-3, settings={"augment.hue": 0.2}, name="b", seed=5)])
    assert differing_settings(groups) == ["augment.hue", "optim.lr"]


def test_each_seed_counts_once_and_the_newest_finished_run_is_it(make: Make) -> None:
    first, again = make(0.90, seed=0), make(0.92, seed=0)
    other, failed = make(0.94, seed=1), make(0.5, seed=1, done=2, end="failed")
    (g,) = group_runs([first, again, other, failed])
    assert g.counted_runs == (again, other)
    assert g.mean("last") == pytest.approx(0.93)
    assert g.state_text == "3 finished, 1 failed"


def test_a_run_under_way_does_not_drag_a_mean_down_and_is_shown_where_it_is_alone(make: Make) -> None:
    running = make(0.9, seed=1, done=2, end="")
    both, alone = group_runs([make(0.9, seed=0), running])[0], group_runs([running])[0]
    assert both.mean("last") == 0.9
    assert both.seed_count == 1
    assert not alone.finished
    assert alone.mean("last") == running.last_top1 < 0.9
    assert alone.state_text == "unknown 2/10"


def test_a_run_that_was_never_evaluated_is_not_counted_beside_one_that_was(make: Make) -> None:
    first, second, waiting = (make(0.9, seed=seed, done=done, end="") for seed, done in ((0, 4), (1, 5), (2, 0)))
    (g,) = group_runs([first, second, waiting])
    assert (g.counted_runs, g.seed_count, g.values("last").shape) == ((first, second), 2, (2,))
    assert g.mean("last") == pytest.approx((first.last_top1 + second.last_top1) / 2)
    assert group_runs([waiting])[0].counted_runs == (waiting,)  # but a row has something to show where it is alone


def without_epochs(run: RunHistory, *, final: str = "final") -> RunHistory:
    """The same run, of whose evaluations only the journal's final row is left."""
    path = run.directory / "metrics.jsonl"
    rows = [line for line in path.read_text().splitlines(keepends=True) if '"event": "epoch"' not in line]
    path.write_text("".join(rows).replace('"event": "final"', f'"event": "{final}"'))
    return load_history(run.directory)


def test_of_several_runs_of_a_seed_one_that_was_evaluated_counts(make: Make) -> None:
    older, newer = make(0.9, seed=0), without_epochs(make(0.9, seed=0), final="lost")
    assert newer.state == "finished"
    assert np.isnan(newer.last_top1)
    assert group_runs([older, newer])[0].counted_runs == (older,)


def test_best_is_of_all_the_seeds_that_the_row_says_or_not_known(make: Make) -> None:
    runs = [make(0.91, seed=0), without_epochs(make(0.95, seed=1))]
    (row,) = table_rows(group_runs(runs))
    assert (row.group.seed_count, row.values["best"]) == (2, pytest.approx(0.93))  # the final row tells it too
    path = runs[1].directory / "metrics.jsonl"
    path.write_text(path.read_text().replace('"top1_best"', '"forgotten"'))
    (row,) = table_rows(group_runs([runs[0], load_history(runs[1].directory)]))
    assert row.values["last"] == pytest.approx(0.93)
    assert np.isnan([row.values["best"], row.values["best_sd"]]).all()


def test_labels_are_unique_and_say_the_experiments_name(make: Make) -> None:
    runs = [make(lr=lr, name=name) for lr, name in ((1e-3, "a"), (2e-3, "a"), (1e-3, "a-a"), (1e-3, "b"))]
    assert [g.label for g in group_runs(runs)] == ["a-b", "a-c", "a-a", "b"]
    many = group_runs([make(lr=at / 1000) for at in range(1, 31)])
    assert many[25].label == "paper-z"
    assert many[26].label == "paper-aa"
    assert len({g.label for g in many}) == 30


def test_by_run_each_run_is_a_row_named_by_its_id(make: Make) -> None:
    runs = [make(seed=0), make(seed=1)]
    assert [g.label for g in group_runs(runs, by_run=True)] == [run.id for run in runs]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.001, "0.001"),
        (1e-7, "1e-07"),
        (None, "null"),
        (True, "true"),
        ([1, 0.5], "[1,0.5]"),
        ("adamw", "adamw"),
        (12, "12"),
        (0.1234567891, "0.1234567891"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[2J\ud800", r"\x1b[2J\ud800"),
        ("猫 é \\n", "猫 é \\n"),
        (["a\tb"], r"[a\tb]"),
    ],
)
def test_values_are_written_as_the_command_line_has_them(value: object, text: str) -> None:
    assert format_setting(value) == text
