"""The harness itself: its ranks are as good as processes of their own, and it tells what broke, and how to see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runyard.runs.run import Run
from tests.support.trainings import final_state, same, train
from tests.torture.ground import Ground
from tests.torture.harness import Harness, Row
from tests.torture.page import PAGE, RESULTS, render
from tests.torture.promise import Attacker, Promise, Unable, hold
from tests.torture.promises import PROMISES


def promise(strike: object = None, control: object = None) -> Promise:
    def quiet(a: Attacker) -> str:
        return "here, there"

    def breaks(a: Attacker) -> str:
        hold(False, "as it must")
        return ""

    return Promise(1, "It holds.", "We strike.", 5, 2, strike or quiet, control or breaks, "all of it")  # type: ignore[arg-type]


def made(tmp_path: Path, one: Promise, count: int = 5) -> Row:
    harness = Harness([one], Ground(tmp_path), seed=7)
    harness.run({1: count}, minutes=10)
    return harness.rows[1]


def test_attacks_that_are_survived_and_a_control_that_fails_make_a_row_that_holds(tmp_path: Path) -> None:
    row = made(tmp_path, promise())
    assert (row.attacks, row.survived, row.control, row.failures) == (5, 5, "as it must", [])
    assert row.struck == {"here": 5, "there": 5}
    assert row.holds


def test_a_control_that_holds_is_a_failure(tmp_path: Path) -> None:
    row = made(tmp_path, promise(control=lambda a: "survived"))
    assert not row.holds
    assert [f["attack"] for f in row.failures] == ["control"]


def test_what_breaks_is_told_by_its_number_and_comes_again_alone(tmp_path: Path) -> None:
    drawn = []

    def strike(a: Attacker) -> str:
        drawn.append((a.number, a.rng.random()))
        hold(a.number != 3, f"broke at {a.rng.random()}")
        return "here"

    row = made(tmp_path, promise(strike))
    (failure,) = row.failures
    assert failure["attack"] == 3
    assert (row.attacks, row.survived, row.holds) == (5, 4, False)
    again = Harness([promise(strike)], Ground(tmp_path), seed=7)
    again.make(again.promises[0], 3)
    assert again.rows[1].failures == [failure]
    assert drawn[-1] == drawn[3]


def test_a_harness_that_was_cut_off_goes_on_with_the_next_attack_and_makes_no_control_twice(tmp_path: Path) -> None:
    drawn: list[tuple[int, float]] = []

    def strike(a: Attacker) -> str:
        drawn.append((a.number, a.rng.random()))
        hold(a.number != 1, "broke")
        return "here"

    first = Harness([promise(strike)], Ground(tmp_path), seed=7)
    first.run({1: 3}, minutes=10)
    kept = json.loads(json.dumps(first.result()))
    second = Harness([promise(strike, strike)], Ground(tmp_path), seed=7, before=kept)
    second.run({1: 5}, minutes=10)
    assert [number for number, _ in drawn] == [0, 1, 2, 3, 4]
    row = second.rows[1]
    assert (row.attacks, row.survived, row.control, row.struck) == (5, 4, "as it must", {"here": 4})
    assert [failure["attack"] for failure in row.failures] == [1]
    other = Harness([promise(strike)], Ground(tmp_path), seed=8, before=kept)
    assert other.rows[1].attacks == 0, "another seed draws other attacks"


def test_a_machine_that_cannot_attack_shows_no_row_that_holds(tmp_path: Path) -> None:
    def strike(a: Attacker) -> str:
        raise Unable("no gcc")

    row = made(tmp_path, promise(strike))
    assert (row.unable, row.attacks, row.holds) == ("no gcc", 0, False)


@pytest.mark.slow
def test_a_forked_rank_learns_the_same_bits_as_a_process_of_its_own(tmp_path: Path) -> None:
    with Ground(tmp_path) as ground:
        forked = ground.undisturbed(2, "epochs=1")
        run: Run = ground.run("epochs=1")
        train(run, 2)
        assert same(final_state(run), forked.state)
        assert not same(final_state(run), {**forked.state, "step": 1}), "the control"


def test_a_process_with_the_number_of_one_that_ended_is_waited_for(tmp_path: Path) -> None:
    with Ground(tmp_path) as ground:
        first = ground.zygote.start(tmp_path / "said", ("sys:exit", 3))
        assert ground.zygote.wait(first) == 3
        for _ in range(1000):
            try:
                Path("/proc/sys/kernel/ns_last_pid").write_text(str(first - 1))
            except OSError:
                pytest.skip("no right to choose the next process's number")
            second = ground.zygote.start(tmp_path / "said", ("time:sleep", 0.3))
            if second == first:
                break
        assert ground.zygote.wait(second) == 0
        assert second == first, "the number never came again"


def test_the_page_is_the_rendering_of_what_the_last_full_run_came_to() -> None:
    assert PAGE.read_text() == render(json.loads(RESULTS.read_text()))


def test_every_promise_stands_on_the_page_unbroken_and_with_a_control_that_failed() -> None:
    rows = {row["number"]: row for row in json.loads(RESULTS.read_text())["rows"]}
    for wanted in PROMISES:
        row = rows[wanted.number]
        assert (row["promise"], row["attack"], row["at_least"]) == (wanted.promise, wanted.attack, wanted.at_least)
        assert row["attacks"] == row["survived"] > 0
        assert not row["failures"]
        assert row["control"]
