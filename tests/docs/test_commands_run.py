"""The commands of the pages run as they are typed there, in the order of the page, in a folder of runs.

The runs are fabricated, SLURM's commands are stand-ins. A submission is a --dry-run. What trains, or
needs a whole cluster, data or W&B's server, is run by the tests that ``ELSEWHERE`` names.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from runyard.cli.commands import COMMANDS
from runyard.cli.main import main
from runyard.config.schema import Config
from tests.docs.test_commands import PAGES, PLACEHOLDERS, typed
from tests.support.fake_runs import fabricate
from tests.support.fake_slurm import FakeSlurm
from tests.support.settings import ROOT, compose

ELSEWHERE = {
    "doctor": "tests/slurm/test_doctor.py",
    "logs": "tests/cluster/monitor/test_logs.py",
    "predict": "tests/test_predict.py",
    "prepare": "tests/data/prepare/test_prepare.py",
    "rehearse": "tests/slurm/test_rehearse.py",
    "resume": "tests/cluster/launch/test_resume_settings.py",
    "sweep": "tests/cluster/search/test_sweep.py",
    "sync": "tests/tracking/wandb/test_sync.py",
    "--wandb": "tests/tracking/wandb/test_compare.py",
}
SWEEP = "lr"
WATCHING = {"-w"}  # until Ctrl-C


def run_commands(page: str) -> list[tuple[str, int]]:
    """The commands of a page that this process can run, each with its exit code."""
    ended = []
    for command in typed(page):
        program, *words = shlex.split(command)
        if program.removeprefix(".venv/bin/") != "runyard" or not ELSEWHERE.keys().isdisjoint(words):
            continue
        for placeholder, value in PLACEHOLDERS.items():
            words = [word.removesuffix(placeholder) + value if word.endswith(placeholder) else word for word in words]
        words = [SWEEP if word == "SWEEP" else word for word in words if word not in WATCHING]
        if words[0] in ("submit", "create") and "--dry-run" not in words:
            words = ["submit", "--dry-run", *words[1:]]
        ended.append((command, main(words)))
    return ended


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a person types: four runs of two settings of one search, a SLURM that answers."""
    slurm = FakeSlurm(tmp_path / "fake slurm")
    monkeypatch.setenv("PATH", slurm.path)
    monkeypatch.chdir(tmp_path)
    recipe: Config = compose("experiment=paper", "epochs=3")
    for k, (lr, seed) in enumerate([(1e-3, 0), (1e-3, 1), (5e-4, 0), (5e-4, 1)]):
        settings = {"seed": seed, "optim.lr": lr, "name": "starter", "tracking.tags": ["paper"]}
        fabricate(tmp_path / "runs", recipe, f"20260901-{k:06d}-starter-ab1{k}", settings=settings, top1=0.9,
                  sweep=SWEEP)  # fmt: skip
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_on_a_page_does_what_it_was_typed_for(page: Path, folder: Path) -> None:
    assert [(command, code) for command, code in run_commands(page.read_text()) if code != 0] == []


def test_the_tests_that_run_the_other_commands_exist() -> None:
    assert [path for path in ELSEWHERE.values() if not (ROOT / path).is_file()] == []
    assert set(ELSEWHERE) - {"--wandb"} <= set(COMMANDS)


def test_a_command_that_fails_is_seen(folder: Path) -> None:
    os.rename(folder / "runs", folder / "away")
    assert [code for _, code in run_commands("```\nrunyard compare --all\nrunyard report @last\n```\n")] == [2, 2]
