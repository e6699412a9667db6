"""What a sweep found: the setting that matters is named, noise is not, and the cost is all of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from runyard.analysis.compare.groups import group_runs
from runyard.analysis.compare.importance import epsilon_squared, summarize_sweep
from runyard.analysis.compare.narrative import sweep_text
from runyard.analysis.compare.text import markdown
from runyard.runs.results.reading import load_history
from tests.support.fake_runs import Make


def test_two_levels_by_hand() -> None:
    # means 1 and 4, grand mean 2.5; between 4*1.5^2 = 9, within 2*(0.5) = 1, total 10; within per degree 0.5
    assert epsilon_squared(["a", "a", "b", "b"], np.array([0.5, 1.5, 3.5, 4.5])) == pytest.approx((9 - 0.5) / 10)


def test_noise_is_given_nothing_on_average() -> None:
    random = np.random.default_rng(0)
    shares = [epsilon_squared(list("aabbccddee"), random.normal(size=10)) for _ in range(300)]
    raw = [s for s in shares if s is not None]
    assert float(np.median(raw)) == pytest.approx(0, abs=0.05)  # the uncorrected share is 4/9 here


@pytest.mark.parametrize(
    ("levels", "scores"),
    [
        ("aaa", [1, 2, 3]),
        ("abc", [1, 2, 3]),
        ("aabb", [1, 1, 1, 1]),
        ("", []),
        ("aab", [0.913] * 3),
    ],
)
def test_what_cannot_be_told_is_not(levels: str, scores: list[float]) -> None:
    assert epsilon_squared(list(levels), np.array(scores, float)) is None


def test_the_setting_that_moves_the_score_comes_first(make: Make) -> None:
    runs = [
        make(
            0.80 + 0.05 * at + 0.001 * seed + 0.0005 * turn,
            lr=lr,
            seed=seed,
            settings={"augment.rotation_deg": float(turn)},
        )
        for at, lr in enumerate((1e-3, 3e-3))
        for turn in (5, 10)
        for seed in range(3)
    ]
    found = summarize_sweep(group_runs(runs))
    assert [effect.setting for effect in found.effects] == ["optim.lr", "augment.rotation_deg"]
    assert found.effects[0].importance == pytest.approx(1, abs=0.01)
    assert found.effects[1].importance == pytest.approx(0, abs=0.01)
    assert found.seed_variance_fraction is not None
    assert found.seed_variance_fraction < 0.01
    assert found.best is not None
    assert found.best.settings["optim.lr"] == 3e-3
    assert found.evaluated == 12


def test_the_best_point_is_chosen_on_the_held_out_part_where_every_run_has_one(make: Make) -> None:
    overfit, honest = make(0.95, lr=1e-3, validation=True), make(0.90, lr=3e-3, validation=True)
    path = overfit.directory / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row | {"val_top1": 0.5} if row["event"] == "epoch" else row for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = [load_history(overfit.directory), honest]
    found = summarize_sweep(group_runs(runs))
    assert (found.measure, found.best and found.best.runs[0]) == ("val", honest)
    (said,) = [p for p in sweep_text(found, "s", markdown) if p.startswith("Best point")]
    assert "89.50 % over 1 seed; on the test set 90.00 %), by the last top-1 on the held-out part." in said
    found = summarize_sweep(group_runs([*runs, make(0.93, lr=1e-2)]))  # one that held nothing out
    assert (found.measure, found.best and found.best.runs[0]) == ("last", runs[0])
    (said,) = [p for p in sweep_text(found, "s", markdown) if p.startswith("Best point")]
    assert said.endswith("by the last test top-1, so the test set itself chose it, which flatters.")


def test_what_seeds_do_is_told_beside_groups_that_failed(make: Make) -> None:
    able = [make(0.9 + lr + 0.001 * seed, lr=lr, seed=seed) for lr in (1e-3, 3e-3) for seed in (0, 1)]
    alone = summarize_sweep(group_runs(able)).seed_variance_fraction
    failed = [make(lr=lr, done=1, end="failed", message="x") for lr in (1.0, 2.0, 3.0)]
    assert summarize_sweep(group_runs([*able, *failed])).seed_variance_fraction == alone is not None


def test_what_the_shares_leave_open_is_said_as_the_runs_were_laid_out(make: Make) -> None:
    def said(*points: tuple[float, float, int]) -> str:
        runs = [
            make(0.8 + 0.01 * at, lr=lr, seed=seed, settings={"augment.rotation_deg": turn})
            for at, (lr, turn, seed) in enumerate(points)
        ]
        return sweep_text(summarize_sweep(group_runs(runs)), "s", markdown)[-2]

    grid = [(lr, turn, seed) for lr in (1e-3, 3e-3) for turn in (5.0, 10.0) for seed in (0, 1)]
    assert said(*grid).endswith("what is missing from 100 % is what settings do only together.)")
    once = said(*[point for point in grid if point[2] == 0])
    assert once.endswith("is what settings do only together and what seeds do.)")
    assert "shares overlap" in said(*grid[:-1])
    assert said((1e-3, 5.0, 0), (1e-3, 5.0, 1), (3e-3, 5.0, 0)).endswith("corrected for chance.)")  # of one, no overlap
    untold = said((1e-3, 5.0, 0), (3e-3, 10.0, 0), (1e-3, 10.0, 0), (3e-3, 5.0, 0), (2e-3, 7.0, 0))
    assert "shares overlap" in untold
    alone = said((1e-3, 5.0, 0), (3e-3, 10.0, 0))  # as many levels as runs: no share can be told, and none is missing
    assert alone.endswith("corrected for chance.)")
    drawn = [(1e-3 * (1 + at / 7), 5.0, 0) for at in range(16)]
    assert said(*drawn).endswith("is what values do within a bin and what seeds do.)")


def test_numbers_that_were_drawn_are_put_into_bins(make: Make) -> None:
    runs = [make(0.8 + 0.01 * at, lr=1e-3 * (1 + at / 7)) for at in range(16)]
    (effect,) = summarize_sweep(group_runs(runs)).effects
    assert (effect.binned, effect.levels) == (True, 4)
    assert effect.importance is not None
    assert effect.importance > 0.8


def test_failures_are_counted_by_their_reason_and_cost_what_they_cost(make: Make) -> None:
    bad = [make(lr=1.0, seed=s, done=2, end="failed", message=f"not finite at step {s}01 on rank {s}") for s in (1, 2)]
    runs = [
        make(0.9, seed=0),
        make(0.92, lr=3e-3),
        *bad,
        make(lr=2.0, done=1, end="failed", message="no room\non the disk"),
    ]
    silent = make(lr=3.0, done=1, end="")
    found = summarize_sweep(group_runs([*runs, silent]))
    assert found.failures.pop("no sign of life, so it was killed or its machine is gone") == [silent]
    assert {why: len(ids) for why, ids in found.failures.items()} == {"not finite at step … on rank …": 2, "no room": 1}
    assert found.states == {"finished": 2, "failed": 3, "unknown": 1}
    assert found.gpu_hours == pytest.approx(sum(run.gpu_hours for run in [*runs, silent]))
    assert found.gpu_hours_lost == pytest.approx(6 * 36 * 4 / 3600)
    assert found.wall_s == pytest.approx(5000 + 36)


def test_a_sweep_of_which_nothing_finished_has_no_best_point(make: Make) -> None:
    found = summarize_sweep(group_runs([make(lr=lr, done=1, end="failed", message="x") for lr in (1e-3, 3e-3)]))
    assert found.best is None
    assert all(effect.importance is None for effect in found.effects)
