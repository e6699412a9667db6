"""``runyard submit --dry-run``: what would be submitted, what it would cost, and what is not as by default."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from runyard.cli.main import main
from runyard.config.fields import format_literal
from tests.support.commands import API_KEY
from tests.support.fake_slurm import FakeSlurm

SAID = {
    "a node": (["cluster=slurm"], "1 node, 1 task and 0 GPUs on each, 512 images of the global batch 512 per task; "
                                  "at most 60 min and 1 core-hours until the first time limit"),
    "nodes of GPUs": (["cluster=slurm", "cluster.nodes=2", "cluster.gpus_per_node=4", "cluster.timeout_min=90"],
                      "2 nodes, 4 tasks and 4 GPUs on each, 64 images of the global batch 512 per task; "
                      "at most 90 min and 12 GPU-hours until the first time limit"),
    "CPUs": (["cluster=slurm", "cluster.tasks_per_node=2", "cluster.cpus_per_task=4"],
             "1 node, 2 tasks and 0 GPUs on each, 256 images of the global batch 512 per task; "
             "at most 60 min and 8 core-hours"),
    "no requeue": (["cluster=slurm", "cluster.gpus_per_node=1", "cluster.requeue=false"],
                   "at most 60 min and 1 GPU-hours\n"),
    "a sweep": (["-m", "cluster=slurm", "seed=0,1,2", "cluster.gpus_per_node=1"],
                "3 runs, at most 16 at once, each on 1 node, 1 task and 1 GPU on each, 512 images of the global batch "
                "512 per task; at most 60 min and 3 GPU-hours"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without SLURM, without data and without runs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dry(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    assert main(["submit", "experiment=starter", *overrides, "--dry-run"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("overrides", "words"), SAID.values(), ids=SAID)
def test_it_says_size_and_cost_in_words(
    capsys: pytest.CaptureFixture[str], nowhere: Path, overrides: list[str], words: str
) -> None:
    assert words in dry(capsys, *overrides)
    assert list(nowhere.iterdir()) == []


def test_without_experiment_nothing_differs_from_the_defaults_but_what_was_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a machine with a GPU, too: until 0.1.0 the same line meant another recipe there."""
    differences = []
    for experiment in ([], ["experiment=starter"]):
        assert main(["submit", *experiment, "epochs=3", "--dry-run", "--json"]) == 0
        differences.append(set(json.loads(capsys.readouterr().out)["differences"]))
    assert differences[0] == {"epochs"}
    assert {"epochs", "optim.lr", "model.name"} < differences[1]


def test_a_python_that_this_machine_lacks_is_warned_of(capsys: pytest.CaptureFixture[str], nowhere: Path) -> None:
    for python, lacking in (("/nowhere/python", True), ("pyth0n", True), (sys.executable, False)):
        assert main(["submit", "experiment=starter", "cluster=slurm", f"cluster.python={python}", "--dry-run"]) == 0
        words = f"runyard: warning: cluster.python={format_literal(python)}: no such program on this machine"
        assert (words in capsys.readouterr().err) == lacking


def test_it_says_what_differs_from_the_defaults_and_between_points(capsys: pytest.CaptureFixture[str]) -> None:
    said = dry(capsys, "cluster=slurm", "-m", "optim.lr=0.1,0.2", "seed=0,1")
    assert "  optim.lr: 0.001 -> 0.1\n" in said
    assert "  cluster.launcher: local -> slurm\n" in said
    assert "  seed:" not in said, "the first point's is the default"
    assert [line for line in said.splitlines() if line.startswith("a further point: ")] == [
        "a further point: seed=1", "a further point: optim.lr=0.2", "a further point: seed=1, optim.lr=0.2",
    ]  # fmt: skip


def test_nothing_differs_where_nothing_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "experiment=null", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "differs from the defaults:\nnothing was submitted" in said
    assert said.startswith("no batch script: cluster=local starts processes on this machine\n")


def test_as_json_it_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads(dry(capsys, "cluster=nyu_torch", "cluster.account=a", "cluster.nodes=2", "--json"))
    assert set(said) == {"script", "config", "differences", "points", "node_hours", "gpu_hours"}
    assert said["script"].startswith("#!/bin/bash\n")
    assert (said["points"], said["node_hours"], said["gpu_hours"]) == (1, 2, 2)
    assert said["config"]["cluster"]["nodes"] == 2
    assert said["differences"]["cluster.nodes"] == [1, 2]


def test_it_calls_no_command_of_slurm(
    capsys: pytest.CaptureFixture[str], nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm(nowhere / "slurm")
    monkeypatch.setenv("PATH", slurm.path)
    dry(capsys, "cluster=slurm")
    assert slurm.calls() == []


def test_no_secret_of_the_environment_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    for options in ([], ["--json"]):
        assert API_KEY not in dry(capsys, "cluster=slurm", "tracking=online", *options)


def test_what_cannot_train_is_refused_here_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "experiment=starter", "cluster=slurm", "cluster.gpus_per_node=3", "--dry-run"]) == 2
    assert "does not divide among 3 ranks" in capsys.readouterr().err
