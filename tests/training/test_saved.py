"""A newest checkpoint that is damaged, missing or foreign is said; a run that lost all of them is not begun anew."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runyard.cli.main import main
from runyard.data import manifest
from runyard.data.loading.batch import Batch
from runyard.errors import UserError
from runyard.files import sha256
from runyard.runs import saved_checkpoints
from runyard.runs.code.snapshot import CODE_STORE
from runyard.runs.journal import Journal, read_journal
from runyard.runs.run import Run
from runyard.training import checkpoint, continuity
from runyard.training.distributed.launcher import RankInfo
from runyard.training.evaluation import Evaluation
from runyard.training.train_state import TrainState
from tests.support.fake_slurm import FakeSlurm

STEPS = (8, 16, 24)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "fake")
    monkeypatch.setenv("PATH", fake.path)
    return fake


@pytest.fixture(scope="module")
def origin(make_run: Callable[..., Run]) -> Run:
    """One with three checkpoints, as its journal says. Not to be changed: take ``run``."""
    run = make_run("cluster=slurm")
    data = manifest.load_manifest(manifest.dataset_dir(run.config.data))
    (run.path / "data.json").write_text(json.dumps(manifest.manifest_to_dict(data)))
    train_state = fresh(run)
    images = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)
    train_state.train_step([Batch(images, torch.arange(8) % 4, torch.arange(8))])
    for step in STEPS:
        train_state.step = step
        checkpoint.write_checkpoint(run.checkpoints, train_state.state_dict(), step, None)
        Journal(run.journal_path).write("checkpoint", step=step, name=f"step_{step:08d}", seconds=0.1)
    return run


@pytest.fixture
def run(origin: Run, tmp_path: Path) -> Run:
    (tmp_path / "runs").mkdir()
    shutil.copytree(origin.path.parent / CODE_STORE, tmp_path / "runs" / CODE_STORE)
    return Run.open(shutil.copytree(origin.path, tmp_path / "runs" / origin.id, symlinks=True))


def fresh(run: Run) -> TrainState:
    """A learner that has learned nothing."""
    data = manifest.load_manifest(manifest.dataset_dir(run.config.data))
    return TrainState(run.config, data, RankInfo(0, 1, 0, 1, "none", "job"), 8)


def folder(run: Run, step: int) -> Path:
    return run.checkpoints / f"step_{step:08d}"


def flip(path: Path) -> None:
    content = bytearray((path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "state.pt").write_bytes(content)


def fifo(path: Path) -> None:
    (path / "state.pt").unlink()
    os.mkfifo(path / "state.pt")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (flip, "is damaged (its sha256 is not the one it was saved with)"),
    "a FIFO": (fifo, "is damaged (state.pt: a FIFO (named pipe), not a regular file)"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "is damaged (manifest.json: No such file"),
    "missing": (shutil.rmtree, "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_passed_over_is_named_with_its_reason(run: Run, damage: str) -> None:
    assert saved_checkpoints.select_checkpoint(run).warning is None
    change, words = DAMAGE[damage]
    change(folder(run, 24))
    choice = saved_checkpoints.select_checkpoint(run)
    assert choice.checkpoint is not None
    assert choice.checkpoint.step == 16
    assert choice.warning is not None
    assert f"step_00000024 {words}" in choice.warning
    assert choice.warning.endswith(": using step_00000016 instead")


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_a_run_that_lost_all_checkpoints_is_refused_until_it_may_begin_again(run: Run, how: str) -> None:
    for step in STEPS:
        (shutil.rmtree if how == "gone" else flip)(folder(run, step))
    with pytest.raises(UserError, match=r"has no checkpoint left .*runyard resume .*--from-scratch"):
        saved_checkpoints.select_checkpoint(run)
    run.allow_restart_from_scratch()
    assert saved_checkpoints.select_checkpoint(Run.open(run.path)).checkpoint is None
    Journal(run.journal_path).write("checkpoint", step=8, name="step_00000008", seconds=0.1)
    with pytest.raises(UserError, match="has no checkpoint left"):  # what was saved since counts again
        saved_checkpoints.select_checkpoint(Run.open(run.path))


def test_a_run_that_never_saved_begins_without_a_word(make_run: Callable[..., Run]) -> None:
    assert saved_checkpoints.select_checkpoint(make_run()) == saved_checkpoints.CheckpointSelection(None, [])


def test_resume_says_what_a_job_would_pass_over_and_refuses_to_begin_anew_unasked(
    run: Run, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resume", str(run.path), "--from-scratch"]) == 2
    assert f"has {folder(run, 24)} to resume from" in capsys.readouterr().err
    flip(folder(run, 24))
    assert main(["resume", str(run.path)]) == 0
    assert "step_00000024 is damaged" in capsys.readouterr().err
    lost = Run.open(shutil.copytree(run.path, run.path.with_name("lost"), symlinks=True))
    lost.record["jobs"].clear()
    (lost.path / "run.json").write_text(json.dumps(lost.record | {"id": "lost"}))
    shutil.rmtree(lost.checkpoints)
    lost.checkpoints.mkdir()
    assert main(["resume", str(lost.path)]) == 2
    assert "has no checkpoint left" in capsys.readouterr().err
    assert Run.open(lost.path).record["jobs"] == []
    assert main(["resume", str(lost.path), "--from-scratch"]) == 0
    assert len(Run.open(lost.path).record["jobs"]) == 1


class Code:
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def first(state: dict[str, Any]) -> str:
    return next(iter(state["network"]))


def filled(value: float) -> Callable[[dict[str, Any]], Any]:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        weight = state["network"][first(state)].clone()
        weight[0] = value
        return state | {"network": state["network"] | {first(state): weight}}

    return change


def weight(value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state | {"network": state["network"] | {first(state): value}}


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def optimizer(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state | {"optimizer": state["optimizer"] | changes}


FOREIGN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no dict": lambda state: [1, 2],
    "no network": without("network"),
    "no optimizer": without("optimizer"),
    "no step": without("step"),
    "step as text": lambda state: state | {"step": "24"},
    "a weight less": lambda state: state | {"network": dict(list(state["network"].items())[1:])},
    "another shape": weight(torch.zeros(2)),
    "another type of number": lambda s: s | {"network": {k: v.double() for k, v in s["network"].items()}},
    "text for a weight": weight("x"),
    "not a number": filled(float("nan")),
    "infinity": filled(float("inf")),
    "another optimizer": optimizer(state={0: {"odd": 1}}),
    "momentum of another shape": optimizer(state={0: {"momentum_buffer": torch.zeros(1)}}),
    "no momentum": optimizer(state={}),
    "no groups": optimizer(param_groups=[]),
    "groups of rubbish": optimizer(param_groups=[1, 2]),
    "counters of another shape": lambda state: state | {"counters": torch.zeros(2)},
    "best of text": lambda state: state | {"best": {"top1": "x"}},
    "code": lambda state: state | {"network": Code()},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_checkpoint_whose_sum_fits_and_whose_content_does_not_is_passed_over_for_the_one_before(
    run: Run, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    state = torch.load(folder(run, 24) / "state.pt", weights_only=True)
    torch.save(FOREIGN[what](state), folder(run, 24) / "state.pt")
    fits = {"sha256": sha256(folder(run, 24) / "state.pt"), "bytes": (folder(run, 24) / "state.pt").stat().st_size}
    noted = json.loads((folder(run, 24) / "manifest.json").read_text())
    (folder(run, 24) / "manifest.json").write_text(json.dumps(noted | fits))
    assert saved_checkpoints.select_checkpoint(run).skipped == [], "its sum alone does not tell"
    warnings: list[str] = []
    resumed = fresh(run)
    found = continuity.resume_from_checkpoint(run, resumed, Evaluation(1, 33), {"test": 100}, warnings.append)
    assert found is not None
    assert resumed.step == found.step == 16
    (warning,) = warnings
    assert "step_00000024 is damaged" in warning
    assert "\n" not in warning
    assert "weights_only" not in warning
    assert "code ran" not in capfd.readouterr().out


def test_a_sound_checkpoint_is_gone_on_from_without_a_word(run: Run) -> None:
    """The control of the test above."""
    resumed = fresh(run)
    found = continuity.resume_from_checkpoint(run, resumed, Evaluation(1, 33), {"test": 100}, pytest.fail)
    assert found is not None
    assert resumed.step == found.step == 24


def forge(run: Run, step: int, change: Callable[[dict[str, Any]], Any]) -> None:
    state = change(torch.load(folder(run, step) / "state.pt", weights_only=True))
    shutil.rmtree(folder(run, step))
    checkpoint.write_checkpoint(run.checkpoints, state, step, None)


def test_a_network_is_read_from_the_newest_whole_checkpoint_and_says_what_it_passed_over(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.load_network(run)
    assert capsys.readouterr().err == ""
    forge(run, 24, FOREIGN["a weight less"])
    checkpoint.load_network(run)
    assert capsys.readouterr().err.startswith("runyard: warning: step_00000024 is damaged (network has other entries")


@pytest.mark.parametrize("what", ["not a number", "infinity"])
def test_no_labels_come_of_weights_that_are_no_finite_numbers(run: Run, what: str) -> None:
    forge(run, 24, FOREIGN[what])
    with pytest.raises(UserError, match=r"step_00000024: network\.\S+ .*not finite"):
        checkpoint.load_network(run)


def test_a_run_that_lost_its_checkpoints_labels_nothing(run: Run) -> None:
    shutil.rmtree(run.checkpoints)
    with pytest.raises(UserError, match="has no checkpoint left"):
        checkpoint.load_network(run)
    assert [row["event"] for row in read_journal(run.journal_path)[0]] == ["checkpoint"] * 3
