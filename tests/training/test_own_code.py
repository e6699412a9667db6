"""A run is read and gone on with by its own code, whatever the checkout has become since; and not by a stranger's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runyard import ownership
from runyard.cli.main import main
from runyard.errors import UserError
from runyard.runs import journal
from runyard.runs.code import own_code, snapshot
from runyard.runs.code.own_code import TRUST, exec_run_code, restore_code
from runyard.runs.code.snapshot import CODE_STORE
from runyard.runs.run import Run
from tests.support.second_user import NOBODY, needs_root
from tests.support.trainings import train

Rewrite = Callable[[str, str, str], None]


@pytest.fixture
def run(make_run: Callable[..., Run], tmp_path: Path) -> Run:
    """One with a snapshot that no other run shares."""
    made = make_run("epochs=1")
    (tmp_path / "runs").mkdir()
    shutil.copytree(made.path.parent / CODE_STORE, tmp_path / "runs" / CODE_STORE)
    return Run.open(shutil.copytree(made.path, tmp_path / "runs" / made.id, symlinks=True))


def older(run: Run, file: str = "runyard/models/starter.py", text: str = "\n# as it was\n") -> Run:
    """Make it one that was created by a version of the program which ends ``file`` with ``text``."""
    code = run.path.parent / CODE_STORE / "older"
    shutil.copytree(run.code_path, code)
    with open(code / file, "a") as source:
        source.write(text)
    (run.path / "code").unlink()
    (run.path / "code").symlink_to(f"../{CODE_STORE}/older")
    record = run.record | {"code_sha256": snapshot.content_hash(snapshot.snapshot_files(code))}
    (run.path / "run.json").write_text(json.dumps(record))
    return Run.open(run.path)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """What this process would have become: its arguments and environment."""
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda program, arguments, environment: calls.append((arguments, environment)))
    return calls


Executed = list[tuple[list[str], dict[str, str]]]


def test_a_run_of_the_same_code_is_read_by_this_program(run: Run, executed: Executed) -> None:
    exec_run_code(run, ["predict"])
    assert executed == []


def test_a_run_of_other_code_is_read_by_its_own(run: Run, executed: Executed) -> None:
    run = older(run)
    exec_run_code(run, ["predict", "x", TRUST])
    ((arguments, environment),) = executed
    assert arguments == [sys.executable, "-m", "runyard", "predict", "x"]
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == str(run.code_path)


def test_python_that_would_not_take_the_runs_code_is_not_started_for_ever(
    run: Run, executed: Executed, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = older(run)
    monkeypatch.setenv(own_code.ENTERED_VARIABLE, str(run.code_path))
    with pytest.raises(UserError, match="Python does not import its code from"):
        exec_run_code(run, [])
    assert executed == []


def test_a_file_of_another_user_is_known_and_ones_own_and_roots_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ownership.foreign_owner(tmp_path) is None
    assert ownership.foreign_owner(Path("/")) is None
    if os.getuid() == 0:
        os.chown(tmp_path, 54321, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert ownership.foreign_owner(tmp_path) is not None
    with pytest.raises(UserError, match=r"the run belongs to .*; ask them"):
        ownership.require_owner(tmp_path, "the run", "ask them")


@pytest.mark.parametrize("whose", ["run", "code"])
def test_another_users_code_is_not_run_unasked(
    run: Run, executed: Executed, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    run = older(run)
    theirs = run.path if whose == "run" else run.code_path
    monkeypatch.setattr(ownership, "foreign_owner", lambda path: "ann" if path == theirs else None)
    with pytest.raises(UserError, match=rf"belongs to ann; .*{TRUST}"):
        exec_run_code(run, [])
    assert executed == []
    exec_run_code(run, [], trusted=True)
    assert len(executed) == 1


def test_another_users_run_of_our_own_code_is_read_without_asking(
    run: Run, executed: Executed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "foreign_owner", lambda path: "ann")
    exec_run_code(run, [])
    assert executed == []


def other_content(code: Path) -> None:
    (code / "runyard" / "cluster" / "job" / "task.py").write_text("")


LOST: dict[str, Callable[[Run], None]] = {
    "the snapshot is gone": lambda run: shutil.rmtree(run.code_path),
    "the link is gone": lambda run: (run.path / "code").unlink(),
    "both are gone": lambda run: (shutil.rmtree(run.code_path), (run.path / "code").unlink())[1],
}


@pytest.mark.parametrize("how", LOST)
def test_lost_code_is_taken_anew_from_a_checkout_that_holds_the_same_and_this_is_said(run: Run, how: str) -> None:
    assert restore_code(run) is None
    LOST[how](run)
    assert "was missing, and was copied again" in (restore_code(run) or "")
    assert snapshot.content_hash(snapshot.snapshot_files(run.code_path)) == run.record["code_sha256"]
    assert restore_code(run) is None


def test_lost_code_that_the_checkout_does_not_hold_is_refused_with_the_way_back(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run = older(run)
    shutil.rmtree(run.code_path)
    for verb in (["resume"], ["train"], ["predict", "--images", "x", "--out", "y"]):
        assert main([verb[0], str(run.path), *verb[1:]]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "its code is missing" in said
        assert f"copy {CODE_STORE}/{run.record['code_sha256'][:16]} from" in said
    assert not run.journal_path.exists()


@needs_root
@pytest.mark.parametrize("change", [
    lambda code: os.chown(code / "runyard" / "cluster" / "job" / "task.py", NOBODY, -1),
    lambda code: (code / "runyard").chmod(0o770),
    lambda code: (code / "yaml.py").symlink_to("/tmp/yaml.py"),
    other_content,
], ids=["another's file", "a directory that others can write", "a link", "other content"])  # fmt: skip
def test_code_that_another_could_have_put_there_is_not_run(run: Run, change: Callable[[Path], object]) -> None:
    restore_code(run)
    change(run.code_path)
    with pytest.raises(UserError, match=r"belongs to nobody|others can write|symbolic link|not what was submitted"):
        restore_code(run)
    if change is not other_content:
        restore_code(run, trusted=True)


def test_code_that_was_changed_since_the_submission_is_refused(run: Run) -> None:
    with open(run.code_path / "runyard" / "cluster" / "job" / "task.py", "a") as file:
        file.write("import planted\n")
    with pytest.raises(UserError, match=r"the code in .* is not what was submitted: it was changed"):
        restore_code(run)


@pytest.mark.slow
def test_a_run_copied_elsewhere_without_its_code_goes_on_by_the_same_code_and_says_so(
    make_run: Callable[..., Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_run("epochs=1")
    copy = Run.open(shutil.copytree(made.path, tmp_path / made.id, symlinks=True))
    assert not copy.code_path.exists()
    done = subprocess.run(
        [sys.executable, "-m", "runyard", "train", str(copy.path)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "its code was missing, and was copied again" in done.stderr
    assert snapshot.content_hash(snapshot.snapshot_files(copy.code_path)) == copy.record["code_sha256"]
    assert journal.read_journal(copy.journal_path)[0][-1]["reason"] == "finished"


@pytest.mark.slow
def test_predict_labels_by_the_network_of_the_run_and_not_by_the_checkouts(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    """The run's own network is turned around, so that each label tells whose code made it."""
    made = make_run("epochs=1")
    train(made, world_size=1)
    (tmp_path / "runs").mkdir()
    shutil.copytree(made.path.parent / CODE_STORE, tmp_path / "runs" / CODE_STORE)
    run = Run.open(shutil.copytree(made.path, tmp_path / "runs" / made.id, symlinks=True))
    turned = """
class Turned(nn.Module):
    def __init__(self, network): super().__init__(); self.network = network
    def forward(self, x): return -self.network(x)
    def state_dict(self, *a, **k): return self.network.state_dict(*a, **k)
    def load_state_dict(self, *a, **k): return self.network.load_state_dict(*a, **k)
_straight = build
def build(*given): return Turned(_straight(*given))
"""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8))

    def labels() -> tuple[list[str], bool]:
        done = subprocess.run(
            [sys.executable, "-m", "runyard", "predict", str(run.path), "--images", str(tmp_path / "images.npy"),
             "--out", str(tmp_path / "out.csv")],
            capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return (tmp_path / "out.csv").read_text().splitlines()[1:], "using its own" in done.stderr

    straight, said = labels()
    assert not said
    older(run, text=turned)
    turned_around, said = labels()
    assert said
    assert all(a != b for a, b in zip(straight, turned_around, strict=True))
