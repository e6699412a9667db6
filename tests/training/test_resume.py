"""A run that was stopped, killed or damaged goes on as if nothing had happened, to the last bit."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from runyard.runs import journal
from runyard.runs.run import Run
from runyard.training import checkpoint
from tests.support.settings import PATIENCE_S
from tests.support.trainings import Ranks, final_state, same, train

pytestmark = pytest.mark.slow
STEPS_PER_EPOCH, EPOCHS = 8, 12
SETTINGS = (
    f"epochs={EPOCHS}",
    "ema_decay=0.9",
    "accumulate=2",
    "loss.mixup_alpha=0.2",
    "loss.label_smoothing=0.1",
    "checkpoint.every_s=0.2",
    "checkpoint.every_epochs=1",
    "checkpoint.keep_last=3",
)


@pytest.fixture(scope="module")
def whole(make_run: Callable[..., Run]) -> Run:
    """A run that nothing interrupted, on two ranks: what the others are compared with. Tests work on copies."""
    run = make_run(*SETTINGS)
    train(run)
    return run


def copy_of(run: Run, folder: Path) -> Run:
    shutil.copytree(run.path, folder / run.id, symlinks=True)
    (folder / run.code_path.parent.name).symlink_to(run.code_path.parent)
    return Run.open(folder / run.id)


def interrupt(run: Run, number: signal.Signals) -> None:
    """Train ``run`` until it is some epochs on its way, then send ``number`` to rank 1."""
    ranks = Ranks(run, 2, "interrupted")
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and len(journal.epochs(journal.read_journal(run.journal_path)[0])) < 2:
        time.sleep(0.01)
    ranks.processes[1].send_signal(number)
    ranks.wait()
    found = checkpoint.newest_checkpoint(run.checkpoints)
    assert found is not None
    assert 0 < found.step < EPOCHS * STEPS_PER_EPOCH, "it was to be interrupted on its way"


def curves(run: Run) -> list[dict[str, object]]:
    shown = ("epoch", "step", "train_loss", "train_top1", "test_loss", "test_top1", "lr", "grad_norm")
    return [{k: row[k] for k in shown} for row in journal.epochs(journal.read_journal(run.journal_path)[0])]


def test_a_stopped_run_resumes_to_the_bits_of_an_uninterrupted_one(whole: Run, make_run: Callable[..., Run]) -> None:
    stopped = make_run(*SETTINGS)
    interrupt(stopped, signal.SIGTERM)
    assert journal.read_journal(stopped.journal_path)[0][-1]["reason"] == "interrupted"
    train(stopped, job="second")
    assert same(final_state(whole), final_state(stopped))
    assert curves(whole) == curves(stopped)


def test_a_killed_rank_costs_nothing_that_was_saved(whole: Run, make_run: Callable[..., Run]) -> None:
    killed = make_run(*SETTINGS)
    interrupt(killed, signal.SIGKILL)
    train(killed, job="second")
    assert same(final_state(whole), final_state(killed))
    assert curves(whole) == curves(killed)


def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(whole: Run, tmp_path: Path) -> None:
    run = copy_of(whole, tmp_path)
    newest = sorted(run.checkpoints.glob("step_*"))[-1]
    content = bytearray((newest / "state.pt").read_bytes())
    content[1000] ^= 1
    (newest / "state.pt").write_bytes(content)
    found = checkpoint.newest_checkpoint(run.checkpoints)
    assert found is not None
    assert found.path != newest
    train(run, job="second")
    assert same(final_state(whole), final_state(run))


def test_resuming_without_the_optimisers_momentum_is_noticed(whole: Run, tmp_path: Path) -> None:
    """The negative control of bit equality: lose one part of the state, and the comparison must fail."""
    run = copy_of(whole, tmp_path)
    *_, before, newest = checkpoint.valid_checkpoints(run.checkpoints)
    shutil.rmtree(newest.path)
    state = before.load()
    for slot in state["optimizer"]["state"].values():
        slot["momentum_buffer"].zero_()
    checkpoint.write_checkpoint(run.checkpoints, state, before.step, before.score)
    train(run, job="second")
    assert not same(final_state(whole), final_state(run))


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_only_good_checkpoints(make_run: Callable[..., Run]) -> None:
    run = make_run("optim.lr=1e30", "epochs=4", "checkpoint.every_epochs=1", "schedule=constant")
    ranks = Ranks(run, 2, "first")
    assert ranks.wait() == [1, 1]
    for word in ("is not a finite number", "step", "rank", "optim.lr"):
        assert word in ranks.errors[0]
    assert "Traceback" not in ranks.errors[0]
    for good in checkpoint.valid_checkpoints(run.checkpoints):
        assert all(t.isfinite().all() for t in good.load()["network"].values())


def test_two_processes_cannot_write_one_run(make_run: Callable[..., Run]) -> None:
    run = make_run()
    lease = run.acquire_lease()
    ranks = Ranks(run, 1, "second")
    assert ranks.wait() == [2]
    assert "is being written by" in ranks.errors[0]
    assert "Traceback" not in ranks.errors[0]
    lease.release()
    run.acquire_lease().release()


def test_data_that_changed_since_the_run_began_is_refused(whole: Run, tmp_path: Path) -> None:
    run = copy_of(whole, tmp_path)
    noted = json.loads((run.path / "data.json").read_text())
    noted["splits"]["train"]["beton_sha256"] = "0" * 64
    del noted["checksum"]
    (run.path / "data.json").write_text(json.dumps(noted))
    ranks = Ranks(run, 1, "second")
    assert ranks.wait() == [2]
    assert "train changed since run" in ranks.errors[0]
    assert len(set(re.findall(r"\b[0-9a-f]{8}\b", ranks.errors[0].partition("sha256")[2]))) == 2, "both are named"


@pytest.mark.parametrize(("group", "name", "value", "words"), [
    ("optim", "lr", 0.2, "optim.lr=0.2: run {id} was begun with 0.05,"),
    ("model", "widths", [8, 8], "model.widths=[8, 8]: run {id} was begun with [16, 32],"),
    (None, "batch_size", 64, "batch_size=64: run {id} was begun with 32,"),
])  # fmt: skip
def test_a_configuration_edited_to_learn_something_else_is_refused_with_both_values(
    whole: Run, tmp_path: Path, group: str | None, name: str, value: object, words: str
) -> None:
    run = edited(copy_of(whole, tmp_path), group, name, value)
    ranks = Ranks(run, 1, "second")
    assert ranks.wait() == [2]
    assert words.format(id=run.id) in ranks.errors[0]
    assert "Traceback" not in ranks.errors[0]
    assert journal.read_journal(run.journal_path)[0][-1]["user_error"]


def test_a_configuration_edited_where_nothing_is_learned_from_goes_on(whole: Run, tmp_path: Path) -> None:
    run = copy_of(whole, tmp_path)
    shutil.rmtree(checkpoint.valid_checkpoints(run.checkpoints)[-1].path)
    train(edited(run, None, "eval_batch_size", 50), job="second")
    assert same(final_state(whole), final_state(run))


def edited(run: Run, group: str | None, name: str, value: object) -> Run:
    values = yaml.safe_load((run.path / "config.yaml").read_text())
    (values[group] if group else values)[name] = value
    (run.path / "config.yaml").write_text(yaml.safe_dump(values))
    return Run.open(run.path)
