"""docs/cli.md says what `--help` says."""

from __future__ import annotations

import re

import pytest

from runyard.cli.commands import submit
from tests.docs.cli_page import PAGE, render


def words(page: str) -> list[str]:
    """Without the layout, which Python 3.13 changed; it also writes "-n, --lines N" in place of "-n N, --lines N"."""
    return re.sub(r"(-\w) \S+, --", r"\1, --", page).split()


def test_the_page_of_commands_says_what_help_says() -> None:
    assert words(PAGE.read_text()) == words(render()), "make docs"


def test_a_page_that_help_has_left_behind_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "HELP", "something else")
    assert words(PAGE.read_text()) != words(render())


def test_the_page_is_the_same_on_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    page = render()
    for name, value in {"COLUMNS": "40", "TERM": "xterm-256color", "FORCE_COLOR": "1", "LANG": "de_DE.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    assert render() == page
    assert "\x1b" not in page
