"""A stop is heard during an evaluation, and costs neither the epoch before it nor what was evaluated."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from runyard.runs import journal
from runyard.runs.run import Run
from runyard.training import checkpoint
from runyard.training.evaluation import COLUMNS, Evaluation
from runyard.training.stop_signals import StopReason
from runyard.training.trainer import Outcome, train
from tests.support.starts import BEFORE
from tests.support.trainings import Ranks, final_state, same
from tests.support.trainings import train as train_in_processes

STEPS_PER_EPOCH, BATCHES = 8, 20  # of 100 images by 5
SETTINGS = ("epochs=2", "eval_batch_size=5", "ema_decay=0.9")
TIMES_BY_RANK = ("rank_", "slowest_")
TIMES = {"t", "clock_s", "train_s", "eval_s", "images_per_s", "data_wait_pct", "peak_memory_mb"}


def after(answers: int) -> Callable[[], StopReason]:
    """A stop that is asked for once the question was put so often: after each step and each batch of an evaluation."""
    left = iter(range(BEFORE + answers))
    return lambda: StopReason.NO if next(left, None) is not None else StopReason.TIME_LIMIT


def starts_of(run: Run, answers: int, most: int) -> int:
    """How many starts of so many answers each it takes to finish, ``most`` at most."""
    for start in range(1, most + 1):
        if train(run, after(answers)) is Outcome.FINISHED:
            return start
    return most


def epochs(run: Run) -> list[dict[str, Any]]:
    rows = [row for row in journal.read_journal(run.journal_path)[0] if row["event"] in ("epoch", "final")]
    return [{k: v for k, v in row.items() if k not in TIMES and not k.startswith(TIMES_BY_RANK)} for row in rows]


def part_of(run: Run) -> dict[str, Any]:
    """What its newest checkpoint has of the test set's evaluation."""
    found = checkpoint.newest_checkpoint(run.checkpoints)
    assert found is not None
    return dict(found.load()["evaluation"]["parts"]["test"])


@pytest.fixture(scope="module")
def whole(make_run: Callable[..., Run]) -> Run:
    run = make_run(*SETTINGS)
    assert train(run) is Outcome.FINISHED
    return run


def test_an_evaluation_longer_than_each_start_goes_on_and_ends_with_the_same_bits(
    whole: Run, make_run: Callable[..., Run]
) -> None:
    run = make_run(*SETTINGS)
    starts = starts_of(run, answers=BATCHES // 2, most=2 * (STEPS_PER_EPOCH + BATCHES))
    assert starts > 4, "some ended within an evaluation and began within it"
    assert same(final_state(whole), final_state(run))
    assert epochs(run) == epochs(whole), "each epoch is written down once, as if nothing had happened"
    rows = journal.read_journal(run.journal_path)[0]
    assert {row["eval_s"] > 0 and row["images_per_s"] > 0 for row in rows if row["event"] == "epoch"} == {True}


def test_begun_anew_at_each_start_a_long_evaluation_would_never_end(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    monkeypatch.setattr(Evaluation, "restore", lambda *_: None)
    run = make_run(*SETTINGS)
    assert starts_of(run, answers=BATCHES // 2, most=4) == 4
    found = checkpoint.newest_checkpoint(run.checkpoints)
    assert found is not None
    assert (found.step, epochs(run)) == (STEPS_PER_EPOCH, []), "the epoch is kept, and nothing comes after it"


def test_a_stop_in_an_evaluation_keeps_the_epoch_and_raw_weights_though_averages_are_evaluated(
    make_run: Callable[..., Run],
) -> None:
    run = make_run(*SETTINGS)
    assert train(run, after(STEPS_PER_EPOCH + 2)) is Outcome.INTERRUPTED
    found = checkpoint.newest_checkpoint(run.checkpoints)
    assert found is not None
    state = found.load()
    assert (state["step"], state["epochs_done"]) == (STEPS_PER_EPOCH, 0)
    assert not same(state["network"], {**state["network"], **state["ema"]})
    assert part_of(run)["batches"] == 4


def test_interrupted_after_the_last_epoch_was_saved_it_goes_on_too_and_the_checkpoint_keeps_its_score(
    make_run: Callable[..., Run],
) -> None:
    run = make_run("epochs=1", "eval_batch_size=5")
    assert train(run) is Outcome.FINISHED
    before = checkpoint.newest_checkpoint(run.checkpoints)
    assert train(run, after(3)) is Outcome.INTERRUPTED
    assert part_of(run)["batches"] == 5, "it is heard one batch after it was asked"
    assert train(run) is Outcome.FINISHED
    now = checkpoint.newest_checkpoint(run.checkpoints)
    assert before is not None
    assert now is not None
    assert (now.step, now.score) == (before.step, before.score)


def test_a_long_evaluation_is_saved_by_time_as_steps_are(make_run: Callable[..., Run]) -> None:
    run = make_run("epochs=1", "eval_batch_size=5", "checkpoint.every_s=1e-6")
    assert train(run, after(STEPS_PER_EPOCH + BATCHES // 2)) is Outcome.INTERRUPTED
    saved = [row["step"] for row in journal.read_journal(run.journal_path)[0] if row["event"] == "checkpoint"]
    assert saved.count(STEPS_PER_EPOCH) > 2


STOPPED_WITHIN = """
import os, signal, sys
from runyard.training import evaluation
go_on = evaluation.SplitEvaluation.evaluate_batches
def heard(self, *args):
    for _ in go_on(self, *args):
        if self.batches == 4 and os.environ["SUBMITIT_LOCAL_GLOBALID"] == "1":
            os.kill(os.getpid(), signal.SIGUSR2)
        yield
evaluation.SplitEvaluation.evaluate_batches = heard
from runyard.cli.main import main
sys.exit(main(["train", sys.argv[1]]))
"""


@pytest.mark.slow
def test_ranks_of_which_one_is_asked_within_an_evaluation_stop_at_one_batch_and_may_go_on_as_another_number(
    make_run: Callable[..., Run],
) -> None:
    run, other = make_run(*SETTINGS), make_run(*SETTINGS)
    train_in_processes(other)
    ranks = Ranks(run, 2, "first", command=[sys.executable, "-c", STOPPED_WITHIN, str(run.path)])
    assert ranks.wait() == [130, 0], ranks.errors
    found = checkpoint.newest_checkpoint(run.checkpoints)
    assert found is not None
    part = part_of(run)
    assert (found.step, part["batches"], len(part["index"])) == (STEPS_PER_EPOCH, 5, 2 * 5 * 5)
    alone = Run.open(shutil.copytree(run.path, run.path.with_name(f"{run.id}-alone"), symlinks=True))
    train_in_processes(run, job="second")
    assert same(final_state(other), final_state(run))
    assert epochs(run) == epochs(other)
    assert train(alone) is Outcome.FINISHED
    assert epochs(alone)[0]["test_top1"] == epochs(other)[0]["test_top1"], "begun anew"


@pytest.mark.parametrize("saved", [
    -1, "text", {}, {"trained": {}, "cut": {"world_size": 1, "batch_size": 4}, "seconds": 0.0, "parts": {"test": {}}},
    {"trained": {}, "cut": {"world_size": 1, "batch_size": 4}, "seconds": 0.0,
     "parts": {"test": {"batches": 1, **{name: torch.zeros(2, 2) for name in COLUMNS}}}},
])  # fmt: skip
def test_what_is_no_evaluation_under_way_is_refused_as_such(saved: Any) -> None:
    """`continuity.go_on` then passes the checkpoint over, as it does for any other part."""
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        Evaluation(1, 4).restore(saved, {"test": 8})
    Evaluation(1, 4).restore(None, {"test": 8})
