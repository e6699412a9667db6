"""Each mistake costs one line, which is that of tests/cli/sentences.txt, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.sentences import HEAD, PAGE, SECTIONS, Section, provoke

PARTS = {part.partition("\n")[0]: f"\n# {part}" for part in PAGE.read_text().removeprefix(HEAD).split("\n# ")[1:]}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_a_mistake_is_answered_as_the_page_says(section: Section, tmp_path: Path, data_root: Path) -> None:
    assert provoke(section, tmp_path, data_root).strip() == PARTS[section.title].strip(), (
        "python -m tests.cli.sentences"
    )


def test_the_page_has_no_other_part() -> None:
    assert list(PARTS) == [section.title for section in SECTIONS]


def test_another_sentence_is_seen(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = replace(SECTIONS[0], mistakes=("sync",))
    answer = provoke(section, tmp_path / "as it is", data_root).removeprefix(f"\n# {section.title}\n")
    assert answer in PARTS[section.title]
    monkeypatch.setattr("runyard.cli.commands.sync.EXAMPLE", "something else")
    other = provoke(section, tmp_path, data_root).removeprefix(f"\n# {section.title}\n")
    assert other not in PARTS[section.title]
