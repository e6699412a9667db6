"""Who may import whom. The contracts between the rooms stand in pyproject.toml; here: that a breach of one is seen, and
that a login node loads nothing heavy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.settings import ROOT

HEAVY = ("torch", "torchvision", "ffcv", "wandb", "numba", "cv2")
# Imported on a login node, or by who only reads runs: every module of these rooms, or the module alone.
LIGHT = ("analysis", "cli", "cluster", "config", "runs", "tracking.recorder", "data.manifest", "training.stop_signals")

LOADS = """
import importlib, pkgutil, sys
for name in sys.argv[1].split():
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", ()), name + "."):
        importlib.import_module(found.name)
print(*(name for name in sys.argv[2].split() if name in sys.modules))
"""


def loads(*modules: str) -> set[str]:
    """What heavy libraries a new Python process holds that has imported ``modules`` and all that lies below them."""
    command = [sys.executable, "-c", LOADS, " ".join(modules), " ".join(HEAVY)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def contracts(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)


def test_what_a_login_node_imports_loads_nothing_heavy() -> None:
    assert loads(*(f"runyard.{name}" for name in LIGHT)) == set()


def test_a_heavy_library_in_a_fresh_process_is_seen() -> None:
    assert {"torch", "numba"} <= loads("runyard.training.trainer")


def test_training_needs_no_launcher_no_tracker_and_no_ffcv() -> None:
    seen = "hydra omegaconf submitit wandb ffcv torchvision"
    command = [sys.executable, "-c", LOADS, "runyard.training", seen]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == []


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy that may be changed."""
    for name in ("src", "cluster"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_rooms_import_each_other_downwards_only(checkout: Path) -> None:
    done = contracts(checkout)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("module", "planted", "broken"), [
    ("src/runyard/training/trainer.py", "from runyard.cluster.launch import submit", "Rooms import downwards"),
    ("cluster/slurm/queue.py", "def late():\n    from runyard.cluster.monitor import status", "Rooms import downwards"),
    ("src/runyard/training/loss.py", "def late():\n    import wandb", "Only tracking speaks to W&B"),
    ("src/runyard/training/loss.py", "import ffcv.loader", "Only data knows FFCV"),
    ("src/runyard/training/loss.py", "import submitit", "Training knows no launcher"),
])  # fmt: skip
def test_an_import_against_the_contracts_is_seen_however_late(
    checkout: Path, module: str, planted: str, broken: str
) -> None:
    with open(checkout / module, "a") as file:
        file.write(f"\n\n{planted}\n")
    done = contracts(checkout)
    assert done.returncode == 1
    assert any(line.startswith(broken) for line in done.stdout.splitlines() if line.endswith("BROKEN")), done.stdout
