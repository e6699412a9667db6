"""What the documents name is there: files and folders, and the names that they say a file has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.settings import ROOT

SCREENS = 170  # about three screens of lines of 120 characters
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
RENDERED = {"cli.md", "guarantees.md"}  # reference pages that a program writes
PATH = re.compile(r"(?<![\w./~-])(?:src|cluster|configs|slurm|tests|docs|benchmarks)/[\w./*-]*")
MODULE = re.compile(r"`([\w./]+\.py)`")
NAME_IN_FILE = re.compile(r"`([\w.]+)`\s+(?:in|of)\s+`([\w./]+\.py)`")  # `Trainer.fit` in `src/runyard/...py`


def not_there(text: str) -> list[str]:
    """Paths in ``text`` that do not exist. Of ``configs/model/NAME.yaml`` the folder has to; a module may be named by
    the end of its path."""
    paths = [path.rstrip(".") for path in PATH.findall(text)]
    missing = [path for path in paths if not any(ROOT.glob(_without_placeholder(path)))]
    known = [f"/{path.relative_to(ROOT)}" for top in ("src", "cluster", "tests", "benchmarks")
             for path in (ROOT / top).rglob("*.py")]  # fmt: skip
    modules = [module for module in MODULE.findall(text) if not module.rpartition("/")[2].startswith("NAME.")]
    return missing + [module for module in modules if not any(path.endswith(f"/{module}") for path in known)]


def _without_placeholder(path: str) -> str:
    parts = path.rstrip("/").split("/")
    return "/".join(parts[: next((n for n, part in enumerate(parts) if part.partition(".")[0].isupper()), None)])


def undefined(text: str) -> list[str]:
    """What ``text`` says a file has, and the file does not define."""
    return [f"{name} in {file}" for name, file in NAME_IN_FILE.findall(text) if not _defines(ROOT / file, name)]


def _defines(file: Path, name: str) -> bool:
    *_, last = name.split(".")
    return re.search(rf"^\s*(?:(?:def|class) {last}\b|{last}(?:: | = ))", file.read_text(), re.MULTILINE) is not None


def untold_rooms(page: str, packages: list[Path]) -> list[str]:
    """Folders of modules that ``page`` does not have."""
    return [str(folder.relative_to(ROOT)) for folder in packages if f"{folder.name}/" not in page]


def rooms() -> list[Path]:
    return [init.parent for top in ("src", "cluster") for init in sorted((ROOT / top).rglob("__init__.py"))]


def length(text: str) -> int:
    """Lines of 120 characters that ``text`` takes; a line of a table is wrapped, too."""
    return sum(max(1, -(-len(line) // 120)) for line in text.splitlines())


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in RENDERED], ids=lambda page: page.name)
def test_no_page_is_longer_than_three_screens(page: Path) -> None:
    assert length(page.read_text()) <= SCREENS


def test_a_long_page_is_noticed() -> None:
    assert length("word\n" * SCREENS) == SCREENS
    assert length("word\n" * (SCREENS - 1) + "x" * 241) == SCREENS + 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_path_that_a_document_names_exists(page: Path) -> None:
    assert not_there(page.read_text()) == []


@pytest.mark.parametrize("path", [
    "src/runyard/verbs/submit.py", "cluster/executor.py", "configs/verb/NAME.yaml", "slurm/none.sbatch", "tests/none/",
    "docs/none.md", "benchmarks/none*.py", "training/loop.py", "causes.py",
])  # fmt: skip
def test_a_path_that_does_not_exist_is_noticed(path: str) -> None:
    assert set(not_there(f"First `docs/architecture.md`, then `{path}`.")) == {path}


def test_a_placeholder_stands_for_any_name() -> None:
    assert not_there("`configs/model/NAME.yaml`, `configs/GROUP/`, `src/runyard/models/NAME.py`, `trainer.py`") == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_file_defines_what_a_document_says_it_has(page: Path) -> None:
    assert undefined(page.read_text()) == []


def test_a_name_that_a_file_does_not_define_is_noticed() -> None:
    text = "`Config.seed` in `src/runyard/config/schema.py`, `Config.sed` in\n  `src/runyard/config/schema.py`"
    assert undefined(text) == ["Config.sed in src/runyard/config/schema.py"]


def test_the_architecture_has_every_folder_of_modules() -> None:
    assert untold_rooms((ROOT / "docs" / "architecture.md").read_text(), rooms()) == []


def test_a_folder_that_the_architecture_lacks_is_noticed() -> None:
    assert "cluster/launch/checks" in untold_rooms("cluster/ launch/", rooms())
