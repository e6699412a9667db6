"""``runyard resume --failed --sweep S``: all runs of a sweep that failed go on, and no other run."""

from __future__ import annotations

import json

import pytest

from runyard.cli.main import main
from runyard.config.compose import compose
from runyard.runs.journal import Journal
from runyard.runs.run import Run
from tests.support.fake_slurm import FakeSlurm

SWEEP = "20300101-000000-grid-0000"


def ended(small: list[str], reason: str, sweep: str | None = SWEEP, *overrides: str) -> Run:
    words = ["experiment=null", *small, "cluster=slurm", *overrides]
    run = Run.create(compose(words).config, [o for o in words if not o.startswith("runs_dir=")], sweep)
    Journal(run.journal_path).write("stop", reason=reason, message="", cause="")
    return run


@pytest.fixture
def runs(small: list[str]) -> list[Run]:
    """Two that failed; then one that finished, one that was interrupted, and one that failed but is of no sweep."""
    of = [(reason, SWEEP) for reason in ("failed", "failed", "finished", "interrupted")]
    return [ended(small, reason, sweep) for reason, sweep in [*of, ("failed", None)]]


def resumed(runs: list[Run]) -> list[bool]:
    return [bool(Run.open(run.path).record["jobs"]) for run in runs]


def resume(runs: list[Run], *words: str) -> int:
    return main(["resume", "--runs-dir", str(runs[0].path.parent), *words])


def test_all_that_failed_are_resumed_with_the_changes_that_are_given(
    runs: list[Run], slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resume(runs, "--failed", "--sweep", "@last", "cluster.timeout_min=30", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert sorted(row["run"] for row in rows) == sorted(run.id for run in runs[:2])
    assert resumed(runs) == [True, True, False, False, False]
    assert [Run.open(run.path).config.cluster.timeout_min for run in runs[:3]] == [30, 30, 60]


def test_one_that_cannot_be_resumed_keeps_no_other_from_it(
    runs: list[Run], slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs[0].path / "config.yaml").write_text("damaged: [")
    assert resume(runs, "--failed", "--sweep", SWEEP) == 2
    assert runs[0].id in capsys.readouterr().err
    assert resumed(runs[1:]) == [True, False, False, False]


def test_where_none_failed_nothing_is_submitted(
    small: list[str], slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [ended(small, "finished")]
    assert resume(runs, "--failed", "--sweep", SWEEP) == 0
    assert "has failed" in capsys.readouterr().out
    assert slurm.submissions == []


@pytest.mark.parametrize(
    "words", [["--failed"], ["--sweep", "@last"], [], ["A", "--failed", "--sweep", "@last"],
              ["--failed", "--sweep", "@last", "--attach"], ["--failed", "--sweep", "unknown"]],
)  # fmt: skip
def test_half_a_selection_is_refused_in_one_line(
    runs: list[Run], slurm: FakeSlurm, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert resume(runs, *words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert slurm.submissions == []


@pytest.mark.parametrize("order", [["--detach", "RUN"], ["RUN", "--detach"], ["--detach", "RUN", "epochs=5"]])
def test_a_single_run_may_stand_before_and_after_options(
    runs: list[Run], slurm: FakeSlurm, order: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [runs[3].id if word == "RUN" else word for word in order]
    code = resume(runs, *words)
    error = capsys.readouterr().err
    if "epochs=5" in words:  # it is taken for a change of what is learned
        assert (code, "epochs=5: run" in error) == (2, True)
    else:
        assert (code, resumed(runs)[3]) == (0, True), error
