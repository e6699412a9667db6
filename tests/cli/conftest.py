"""A small run at the command line, and commands that must be refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from runyard.cli.main import main
from tests.support.commands import Refused
from tests.support.settings import SMALL_DATA

SMALL = (
    *SMALL_DATA,
    "model=starter",
    "model.widths=[16,32]",
    "loader=resident",
    "epochs=1",
    "batch_size=32",
    "tracking=none",
)


@pytest.fixture
def small(data_root: Path, tmp_path: Path) -> list[str]:
    """Overrides that make a small run which would work."""
    return [*SMALL, f"data.root={data_root}", f"runs_dir={tmp_path / 'runs'}"]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """``refused("create", "epochs=0")``: the one line it says. Fails unless that is all it does."""
    monkeypatch.chdir(tmp_path)

    def check(*argv: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        code = main(list(argv))
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert (code, out, len(lines)) == (2, "", 1), (code, out, err)
        assert lines[0].startswith("runyard: ")
        left = [p for p in sorted(tmp_path.rglob("*")) if p not in before and not p.name.endswith("lock")]
        assert [p for p in left if p.is_file() or ".making" in p.name] == [], "something half-made was left"
        return lines[0].removeprefix("runyard: ")

    return check


@pytest.fixture
def run(small: list[str], capsys: pytest.CaptureFixture[str]) -> Path:
    """A run that has not been trained."""
    assert main(["create", *small]) == 0
    return Path(capsys.readouterr().out.strip())
