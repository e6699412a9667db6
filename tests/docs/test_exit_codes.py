"""The page on exit codes and the shell scripts say what the code says: errors.ExitCode is the one place for them."""

from __future__ import annotations

import re
from pathlib import Path

from runyard.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
OF_THE_SHELL = {126, 127}


def documented(page: str) -> set[int]:
    section = page.partition("## Exit codes")[2].partition("\n## ")[0]
    return {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", section, re.MULTILINE) for code in row.split(",")}


def test_the_page_on_exit_codes_has_those_of_the_code_and_no_others() -> None:
    page = (ROOT / "docs" / "states.md").read_text()
    assert documented(page) - OF_THE_SHELL == set(ExitCode)
    assert documented(page.replace("| 75 |", "| 76 |")) - OF_THE_SHELL != set(ExitCode), "the control"


def test_the_batch_script_requeues_on_the_code_that_python_means_by_it() -> None:
    script = (ROOT / "slurm" / "requeue.sh").read_text()
    assert f'[ "$verdict" -eq {ExitCode.REQUEUE:d} ] || finish' in script
    assert f"exit {ExitCode.REQUEUE:d}\n" in script
