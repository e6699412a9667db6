"""The files that say how things are started and what is installed agree with one another."""

from __future__ import annotations

import itertools
import re
import subprocess
import tomllib

import pytest
import yaml

from tests.support.settings import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9_.-]", requirement.strip())[0].lower().replace("_", "-")


def unhashed(lock: str) -> list[str]:
    """Locked packages without a hash."""
    return [name_of(entry) for entry in re.split(r"\n(?=\S)", lock.strip()) if "--hash=sha256:" not in entry]


def test_every_locked_package_has_a_hash_and_no_address() -> None:
    assert unhashed(LOCK) == []
    assert "://" not in LOCK


def test_a_locked_package_without_a_hash_is_found() -> None:
    assert unhashed("a==1 \\\n    --hash=sha256:00\nb==2\n") == ["b"]


def test_the_lock_holds_everything_the_project_asks_for() -> None:
    wanted = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]
    locked = {name_of(line) for line in LOCK.splitlines() if re.match(r"\S+==", line)}
    assert {name_of(w) for w in wanted} - locked == set()
    assert "setuptools" in locked  # builds the project itself, with no network
    for pinned in ("torch==2.13.0 ", "torchvision==0.28.0 "):  # a pair: one alone does not import
        assert f"\n{pinned}" in LOCK


def test_make_help_has_a_line_for_every_target() -> None:
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make ([a-z-]+) +\S", shown, re.MULTILINE) == targets
    assert subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout == shown


@pytest.mark.parametrize(
    ("target", "steps"),
    [
        ("train", ["slurm/setup.sh data", "runyard submit experiment=auto epochs=5"]),
        ("test", ["slurm/setup.sh data", "ruff check", "mypy", "pytest"]),
        ("check", ["slurm/setup.sh", "ruff check", "mypy", '-m "not slow and not data"']),
    ],
)
def test_a_target_does_its_own_set_up_first(target: str, steps: list[str]) -> None:
    arguments = ["ARGS=epochs=5"] if target == "train" else []
    planned = subprocess.run(["make", "-n", target, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    places = [planned.stdout.find(step) for step in steps]
    assert -1 not in places
    assert places == sorted(places)


def test_continuous_integration_runs_make_test() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "set -euo pipefail" in lines
    assert lines[-1] == "make test"


def test_the_conda_recipe_holds_what_the_set_up_asks_for() -> None:
    recipe = yaml.safe_load((ROOT / "slurm" / "environment.yml").read_text())
    assert recipe["channels"] == ["conda-forge", "nodefaults"]
    packages = {name_of(package) for package in recipe["dependencies"]}
    asked = re.search(r"^ +\((opencv .*)\)$", (ROOT / "slurm" / "setup.sh").read_text(), re.MULTILINE)
    assert asked
    assert set(asked[1].split()) <= packages


def test_the_container_recipe_copies_what_it_needs_and_uses_the_same_set_up() -> None:
    recipe = (ROOT / "slurm" / "runyard.def").read_text()
    copied = re.findall(r"^ +(\S+) (/opt/runyard/\S+)$", recipe, re.MULTILINE)
    needed = {"pyproject.toml", "requirements.lock", "cluster", "configs", "slurm", "src", PROJECT["readme"]}
    assert {source for source, _ in copied} >= needed
    for source, target in copied:
        assert target == f"/opt/runyard/{source}"
    assert "\n    /opt/runyard/slurm/setup.sh\n" in recipe
