"""Runs that version 0.1.0 wrote are read by every command that reads runs. That version cannot continue here.

``runs_of_0_1_0`` holds what it left of a run of two epochs on two ranks, with one checkpoint and without its code.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runyard.cli.main import main

KEPT = Path(__file__).with_name("runs_of_0_1_0")
Said = Callable[..., tuple[int, str, str]]  # a command's words -> its exit code, output and errors
RUN = "20261127-164821-starter-2f7a"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A copy, with the permissions that a run's directory has."""
    runs = Path(shutil.copytree(KEPT, tmp_path / "runs", symlinks=True))
    for path in runs.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)
    return runs


@pytest.fixture
def said(runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """``said("status")`` is the exit code of the command and what it printed."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(runs.parent)

    def run(*words: str) -> tuple[int, str, str]:
        try:
            code = main(list(words))
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return int(code or 0), out, err

    return run


def make_unfinished(run: Path) -> None:
    """Leave of the journal what was written before the second epoch."""
    events = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"step": 8' not in line]
    kept = [line for line in events if json.loads(line)["event"] not in ("final", "stop")]
    (run / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    for name in ("predictions.npz", "lease"):
        (run / name).unlink()


def test_status_reads_it(said: Said) -> None:
    code, out, err = said("status")
    assert (code, err) == (0, "")
    assert re.search(r"finished +8/8 +25\.0/25\.0", out)
    code, out, err = said("status", RUN)
    assert code == 0
    assert "finished" in out


def test_compare_reads_it(said: Said) -> None:
    code, out, err = said("compare", "--all", "--json")
    assert code == 0, err
    assert RUN in out
    code, out, err = said("compare", "--all")
    assert code == 0, err
    assert "25.00" in out


def test_report_logs_and_export_read_it(said: Said, runs: Path) -> None:
    assert said("report", RUN)[0] == 0
    assert "25.00" in (runs / RUN / "report" / "index.html").read_text()
    code, out, err = said("logs", RUN)
    assert code == 0, err
    assert "final test top-1 25.00%" in out
    code, out, err = said("export", "csv", "--all")
    assert code == 0, err
    assert len((runs.parent / "export" / "csv" / f"{RUN}.csv").read_text().splitlines()) == 3


def test_resume_of_an_unfinished_one_is_refused_in_one_line(said: Said, runs: Path) -> None:
    make_unfinished(runs / RUN)
    code, _, err = said("resume", RUN)
    assert code == 2
    assert err.count("\n") == 1
    assert "its code is missing" in err


def test_an_unreadable_run_would_be_noticed(said: Said, runs: Path) -> None:
    record = json.loads((runs / RUN / "run.json").read_text())
    (runs / RUN / "run.json").write_text(json.dumps(record | {"format": "runyard-run-2"}))
    assert said("status", RUN)[0] != 0
    (runs / RUN / "metrics.jsonl").write_text("")
    assert "25.00" not in said("compare", "--all")[1]
