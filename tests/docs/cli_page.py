"""docs/cli.md, rendered from `--help`. Written by ``make docs``, or: python -m tests.docs.cli_page"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from unittest import mock

from runyard.cli.commands import COMMANDS
from runyard.cli.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
COLUMNS = "100"
HEAD = """\
# Commands

What `runyard COMMAND --help` says. This page is rendered from it (`make docs`); a test compares the two. Settings
(`SETTING=VALUE`) are listed by `runyard settings`, exit codes in [states and exit codes](states.md#exit-codes).
"""


def help_of(*command: str) -> str:
    """What ``runyard COMMAND --help`` prints, without colors, whatever the width of this terminal."""
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS=COLUMNS, NO_COLOR="1"),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main([*command, "--help"])
    return printed.getvalue()


def render() -> str:
    """The page."""
    commands = [(), *((name,) for name in COMMANDS)]
    parts = [f"\n## {' '.join(('runyard', *command))}\n\n```text\n{help_of(*command)}```\n" for command in commands]
    return HEAD + "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render())
