"""A checkpoint is whole or absent, the right ones are kept, and reading one runs no code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runyard.files import sha256
from runyard.runs.saved_checkpoints import InvalidCheckpoint
from runyard.training import checkpoint
from runyard.training.checkpoint import CheckpointSaver, newest_checkpoint, valid_checkpoints, write_checkpoint


def state(step: int) -> dict[str, Any]:
    return {"step": step, "network": {"weight": torch.full((3,), float(step))}, "ema": None}


def steps(folder: Path) -> list[int]:
    return [c.step for c in valid_checkpoints(folder)]


def found(folder: Path) -> tuple[int, float]:
    """Step and content of what a resume would take."""
    best = newest_checkpoint(folder)
    assert best is not None
    return best.step, float(best.load()["network"]["weight"][0])


def failing(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    """``function``, which does nothing but raise at its call number ``at``: what a kill just before it leaves."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise InterruptedError("killed")
        return function(*args, **kwargs)

    return wrapped


KILLS = [
    pytest.param(checkpoint, "write_atomic", 1, id="before the state"),
    pytest.param(checkpoint, "sha256", 1, id="state written"),
    pytest.param(checkpoint, "write_atomic", 2, id="before the manifest"),
    pytest.param(Path, "rename", 1, id="before the rename"),
]


@pytest.mark.parametrize(("module", "name", "call"), KILLS)
def test_a_kill_while_writing_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int
) -> None:
    write_checkpoint(tmp_path, state(8), 8, None)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing(getattr(module, name), call))
        with pytest.raises(InterruptedError):
            write_checkpoint(tmp_path, state(16), 16, None)
    assert steps(tmp_path) == [8]
    assert found(tmp_path) == (8, 8.0)
    write_checkpoint(tmp_path, state(16), 16, None)
    assert found(tmp_path) == (16, 16.0)


@pytest.mark.parametrize(("module", "name", "call"), [*KILLS, pytest.param(Path, "rename", 2, id="between renames")])
def test_a_kill_while_writing_the_same_step_again_leaves_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int
) -> None:
    write_checkpoint(tmp_path, state(8), 8, None)
    again = state(8) | {"network": {"weight": torch.full((3,), 9.0)}}
    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing(getattr(module, name), call))
        with pytest.raises(InterruptedError):
            write_checkpoint(tmp_path, again, 8, None)
    assert found(tmp_path) == (8, 8.0)
    assert steps(tmp_path) == [8]
    write_checkpoint(tmp_path, again, 8, None)
    assert found(tmp_path) == (8, 9.0)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000008"]


def test_what_reads_back_differently_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "sha256", lambda path: "0" * 64)
    with pytest.raises(OSError, match="reads back differently"):
        write_checkpoint(tmp_path, state(8), 8, None)
    assert not list(tmp_path.iterdir()), "what is half-made would fill the disk further"


@pytest.mark.parametrize("damage", ["flip", "truncate", "no manifest", "no state", "foreign", "list"])
def test_a_damaged_or_foreign_folder_is_passed_over(tmp_path: Path, damage: str) -> None:
    write_checkpoint(tmp_path, state(8), 8, None)
    target = write_checkpoint(tmp_path, state(16), 16, None)
    content = (target / "state.pt").read_bytes()
    match damage:
        case "flip":
            (target / "state.pt").write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
        case "truncate":
            (target / "state.pt").write_bytes(content[:-1])
        case "no manifest":
            (target / "manifest.json").unlink()
        case "no state":
            (target / "state.pt").unlink()
        case "foreign":
            (target / "manifest.json").write_text('{"what": "another program\'s"}')
        case "list":
            (target / "manifest.json").write_text("[1, 2]")
    assert steps(tmp_path) == [8]
    assert found(tmp_path) == (8, 8.0)


def saved(folder: Path, scores: dict[int, float | None], **settings: Any) -> list[int]:
    folder.mkdir(exist_ok=True)
    saver = CheckpointSaver(folder, **settings)
    for step, score in scores.items():
        saver.save(state(step), step, score, wait=True)
    saver.close()
    return steps(folder)


def test_the_last_few_and_the_best_are_kept(tmp_path: Path) -> None:
    scores = {8: 0.5, 16: 0.9, 24: 0.7, 32: None, 40: 0.8}
    assert saved(tmp_path / "a", scores, keep_last=2, keep_best=True) == [16, 32, 40]
    assert saved(tmp_path / "b", scores, keep_last=2, keep_best=False) == [32, 40]
    assert saved(tmp_path / "c", scores, keep_last=1, keep_best=True) == [16, 40]
    assert saved(tmp_path / "d", {8: 0.9, 16: 0.9, 24: 0.1}, keep_last=1, keep_best=True) == [16, 24]


def test_a_damaged_later_checkpoint_does_not_crowd_out_the_new_one(tmp_path: Path) -> None:
    later = write_checkpoint(tmp_path, state(99), 99, None)
    (later / "state.pt").write_bytes(b"damaged")
    assert saved(tmp_path, {8: None, 16: None}, keep_last=1, keep_best=False) == [16]
    assert saved(tmp_path, {99: None}, keep_last=1, keep_best=False) == [99], "the step is reached again"


def test_what_a_kill_left_half_made_is_cleared_by_the_next_save(tmp_path: Path) -> None:
    shutil.copytree(write_checkpoint(tmp_path, state(8), 8, None), tmp_path / ".making-step_00000012")
    assert saved(tmp_path, {16: None}, keep_last=2, keep_best=False) == [8, 16]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000008", "step_00000016"]


def test_what_is_saved_is_the_state_at_the_call(tmp_path: Path) -> None:
    saver, live = CheckpointSaver(tmp_path, 1, False), state(8)
    saver.save(live, 8, None, wait=False)
    live["network"]["weight"].fill_(-1)
    saver.close()
    assert found(tmp_path) == (8, 8.0)


def test_a_checkpoint_is_told_of_when_it_is_whole_on_disk_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, list[int]]] = []
    saver = CheckpointSaver(tmp_path, 1, False, on_saved=lambda step, seconds: told.append((step, steps(tmp_path))))
    saver.save(state(8), 8, None, wait=True)
    assert told == [(8, [8])]

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_and_verify", full)
    with pytest.raises(OSError, match="No space left"):
        saver.save(state(16), 16, None, wait=True)
    assert told == [(8, [8])]
    saver.close()


def test_a_disk_that_fails_costs_two_saves_and_a_warning_each_and_the_third_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    saver, real, fails = (
        CheckpointSaver(tmp_path, 1, False, warn=warned.append),
        checkpoint.write_checkpoint,
        {16, 24, 40, 48, 56},
    )

    def full(folder: Path, state: Any, step: int, *more: Any) -> Path:
        if step in fails:
            raise OSError(28, "No space left on device")
        return real(folder, state, step, *more)

    monkeypatch.setattr(checkpoint, "write_checkpoint", full)
    for step in (8, 16, 24, 32, 40, 48):
        saver.save(state(step), step, None, wait=False)
        saver.wait()
        assert newest_checkpoint(tmp_path) is not None, "what was saved before stays"
    assert [words.partition(" (")[0] for words in warned] == [f"step {n} was not saved" for n in (16, 24, 40, 48)]
    assert "(No space left on device), failure 2 in a row; after 3 the run ends" in warned[-1]
    assert found(tmp_path) == (32, 32.0)
    saver.save(state(56), 56, None, wait=False)
    with pytest.raises(OSError, match="No space left"):
        saver.close()


def test_a_save_that_is_waited_for_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    saver = CheckpointSaver(tmp_path, 1, False, warn=pytest.fail)
    monkeypatch.setattr(checkpoint, "write_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        saver.save(state(8), 8, None, wait=True)


def test_an_error_of_the_writing_is_raised_by_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise RuntimeError("it cannot be written")

    calls: list[Callable[[CheckpointSaver], None]] = [
        lambda saver: saver.save(state(16), 16, None, wait=True),
        CheckpointSaver.wait,
        CheckpointSaver.close,
    ]
    for call in calls:
        saver = CheckpointSaver(tmp_path, 1, False)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write_checkpoint", full)
            saver.save(state(8), 8, None, wait=False)
            saver._worker.submit(lambda: None).result()
        with pytest.raises(RuntimeError, match="cannot be written"):
            call(saver)
    assert steps(tmp_path) == []


class Code:
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = write_checkpoint(tmp_path, state(8), 8, None)
    torch.save({"step": 8, "network": Code()}, target / "state.pt")
    fits = {"sha256": sha256(target / "state.pt"), "bytes": (target / "state.pt").stat().st_size}
    manifest = json.loads((target / "manifest.json").read_text()) | fits
    (target / "manifest.json").write_text(json.dumps(manifest))
    best = newest_checkpoint(tmp_path)
    assert best is not None
    with pytest.raises(InvalidCheckpoint, match="not a state that this program saved") as refused:
        best.load()
    assert "weights_only" not in str(refused.value)
    assert "code ran" not in capsys.readouterr().out
    torch.load(target / "state.pt", weights_only=False)
    assert "code ran" in capsys.readouterr().out, "the control: this file does run code where it may"
