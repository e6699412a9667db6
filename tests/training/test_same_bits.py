"""Wherever and however often a run stops, it goes on to the bits of the uninterrupted run, on any number of ranks.

Two ranks could not show in what order gradients are summed: a + b is b + a.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runyard.runs import journal
from runyard.runs.run import Run
from tests.support.starts import train_starts
from tests.support.trainings import final_state, same

pytestmark = pytest.mark.slow
OFTEN = (1, 6, 2, 3, None)  # steps until each stop, of 5 an epoch: the first step, in mid-epoch, four times


def learned(run: Run) -> tuple[dict[str, object], list[list[object]]]:
    """All of the last checkpoint but times, and what the journal says was learned in each epoch."""
    shown = ("epoch", "step", "train_loss", "train_top1", "test_loss", "test_top1", "lr", "grad_norm")
    rows = journal.epochs(journal.read_journal(run.journal_path)[0])
    return final_state(run), [[row[name] for name in shown] for row in rows]


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (3, ["precision=bf16"]),
        (4, ["precision=fp32"]),
        (4, ["precision=fp32", "accumulate=2", "loss.mixup_alpha=0.2", "ema_decay=0.9", "optim.grad_clip_norm=1"]),
        (6, ["precision=fp32", "sync_batch_norm=true"]),
    ],
    ids=["3 ranks in bf16", "4 ranks in fp32", "4 ranks, accumulating, mixup, EMA", "6 ranks, batch norm over all"],
)
def test_a_run_stopped_four_times_ends_with_the_bits_of_the_undisturbed_one(
    make_run: Callable[..., Run], tmp_path: Path, ranks: int, settings: list[str]
) -> None:
    whole, stopped, control = (make_run("batch_size=48", "epochs=3", *settings) for _ in range(3))
    train_starts(
        tmp_path,
        ranks,
        [
            (whole, None, None),
            *((stopped, steps, None) for steps in OFTEN),
            *((control, steps, "warm_up") for steps in (6, None)),
        ],
    )
    assert same(learned(whole), learned(stopped))
    if "precision=fp32" in settings:  # of bf16's gradients most sums are exact, so their order rarely shows
        assert not same(learned(whole), learned(control)), "a first step that is summed in another order goes unnoticed"


def test_with_batch_norm_over_all_ranks_and_dropout_by_sample_four_ranks_learn_what_one_does(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    network = ["model=paper_resnet", "model.widths=[8,16]", "model.blocks=[1,1]", "model.dropout=0.3"]
    settings = [*network, "precision=fp32", "epochs=1", "batch_size=32"]

    def losses(ranks: int, *more: str) -> list[float]:
        run = make_run(*settings, *more)
        train_starts(tmp_path, ranks, [(run, None, None)])
        (row,) = journal.epochs(journal.read_journal(run.journal_path)[0])
        return [row["train_loss"], row["grad_norm"], row["test_loss"]]

    alone, four = losses(1, "sync_batch_norm=true"), losses(4, "sync_batch_norm=true")
    assert four == pytest.approx(alone, rel=1e-5)
    per_rank = losses(4)
    assert per_rank != pytest.approx(alone, rel=1e-3), "batch norm by rank is to be told from this"
