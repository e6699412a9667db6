"""A run learns from what was prepared: data that was changed since is refused by name before anything is learned."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runyard.cli.main import main
from runyard.config.schema import Config
from runyard.data import manifest
from runyard.runs import journal
from runyard.runs.run import Run
from tests.support.prepared import zero_labels
from tests.support.settings import SMALL
from tests.support.trainings import Ranks


@pytest.fixture
def settings(data_root: Path, tmp_path: Path) -> list[str]:
    """What makes a small run, on a copy of the data to do harm to."""
    root = shutil.copytree(data_root, tmp_path / "data")
    return [*SMALL, f"data.root={root}", f"runs_dir={tmp_path / 'runs'}", "loader=ffcv"]


def betons(settings: list[str], make_config: Callable[..., Config]) -> Path:
    return manifest.dataset_dir(make_config(*settings).data)


def test_a_submission_is_refused_before_anything_is_created(
    settings: list[str], make_config: Callable[..., Config], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    zero_labels(betons(settings, make_config) / "train.beton")
    assert main(["submit", "experiment=null", *settings]) == 2
    assert "train.beton: its sha256 is not that of the prepared file" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_job_of_two_ranks_is_refused_before_its_first_step(
    settings: list[str], make_config: Callable[..., Config]
) -> None:
    run = Run.create(make_config(*settings), [])
    zero_labels(betons(settings, make_config) / "train.beton")
    ranks = Ranks(run, 2, "first")
    assert ranks.wait(600) == [2, 2], ranks.errors
    for said in ranks.errors:
        assert "train.beton: its sha256 is not that of the prepared file" in said
        assert "Traceback" not in said
    (stop,) = [row for row in journal.read_journal(run.journal_path)[0] if row["event"] == "stop"]
    assert (stop["user_error"], stop["retry"]) == (True, False)
    assert not [row for row in journal.read_journal(run.journal_path)[0] if row["event"] == "epoch"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut short", "other labels"])
def test_data_that_changes_while_it_is_learned_from_ends_the_run_with_the_files_name(
    settings: list[str], make_config: Callable[..., Config], how: str
) -> None:
    run = Run.create(make_config(*settings, "epochs=1000", "evaluate_every_epochs=1000"), [])
    path = betons(settings, make_config) / "train.beton"
    ranks = Ranks(run, 1, "first")
    while not journal.epochs(journal.read_journal(run.journal_path)[0]):
        assert ranks.processes[0].poll() is None, ranks.wait()
        time.sleep(0.05)
    if how == "cut short":
        os.truncate(path, 4096)
    else:
        with open(path, "r+b") as file:  # in place, as no program should
            content = file.read()
            file.seek(0)
            file.write(content[:-1] + b"\1")
    assert ranks.wait(600) == [2], ranks.errors
    wanted = "train.beton: changed while it was read: 4096 bytes" if how == "cut short" else "train.beton: its sha256"
    assert wanted in ranks.errors[0]
    assert "Traceback" not in ranks.errors[0]
