"""On a disk without file locks every command goes on, warns once, and still keeps two writers apart."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runyard.data import manifest
from tests.support.prepared import data_config
from tests.support.settings import PATIENCE_S, ROOT

ERRNOS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
WARNING = "this disk has no file locks; going on without them"
PREPARE = """
import sys
from runyard.data.prepare.pipeline import prepare_dataset
from tests.support.prepared import data_config
print(prepare_dataset(data_config(root=sys.argv[1]), progress=False).sha256)
"""
SEARCH = """
import sys
from pathlib import Path
import optuna
from runyard.cluster.search.study import SearchSettings, Study, search_lock
from runyard.errors import UserError
from runyard.runs import lease

folder, settings = Path(sys.argv[1]) / "runs" / ".sweeps" / "first", SearchSettings([], [], 0, "tpe", True, "auto")
with search_lock(folder) as locks:
    space = {"optim.lr": optuna.distributions.FloatDistribution(0.1, 1)}
    study = Study(folder, settings, space, 4, locks=locks if sys.argv[2] == "told" else True)
    print("trial", study.ask().number)
    lease.LEASE_HEARTBEAT_S = 0.1
    try:
        with search_lock(folder):
            print("two")
    except UserError as error:
        print(error)
"""


def start(no_locks: Path, number: int, program: str, *args: object) -> subprocess.Popen[str]:
    env = {**os.environ, "LD_PRELOAD": str(no_locks), "NO_LOCKS": str(number), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, *map(str, args)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", ERRNOS)
def test_prepare_goes_on_without_locks_and_warns_once(no_locks: Path, tmp_path: Path, number: int) -> None:
    """The control: a locked disk gives the same files without a warning (tests/data/prepare)."""
    out, err = start(no_locks, number, PREPARE, tmp_path).communicate(timeout=PATIENCE_S)
    folder = manifest.dataset_dir(data_config(root=str(tmp_path)))
    assert out.strip() == manifest.load_manifest(folder).sha256, err
    assert err.splitlines() == [f"runyard: warning: {tmp_path}: {WARNING}"]
    again, nothing = start(no_locks, number, PREPARE, tmp_path).communicate(timeout=PATIENCE_S)
    assert (again, nothing) == (out, "")  # what exists is verified, and nothing is opened for writing


@pytest.mark.slow
def test_several_that_prepare_at_once_without_locks_make_one_whole_set(no_locks: Path, tmp_path: Path) -> None:
    several = [start(no_locks, errno.ENOSYS, PREPARE, tmp_path) for _ in range(3)]
    said = [process.communicate(timeout=PATIENCE_S) for process in several]
    assert [process.returncode for process in several] == [0] * 3, said
    assert len({out for out, _ in said}) == 1
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["tiny-300+40-4classes-16px"]


@pytest.mark.parametrize("number", ERRNOS)
def test_a_search_goes_on_without_locks_and_a_second_is_refused_in_one_line(
    no_locks: Path, tmp_path: Path, number: int
) -> None:
    process = start(no_locks, number, SEARCH, tmp_path, "told")
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    trial, second = out.splitlines()
    assert trial == "trial 0"
    assert second.startswith(f"sweep first is being written by process {process.pid} on ")
    assert err.count(WARNING) == 1


def test_the_control_with_locks_asked_for_the_database_is_refused(no_locks: Path, tmp_path: Path) -> None:
    _, err = start(no_locks, errno.ENOSYS, SEARCH, tmp_path, "not told").communicate(timeout=PATIENCE_S)
    assert "study.db: cannot be read" in err.splitlines()[-1]


def test_locks_are_asked_for_in_one_module_alone() -> None:
    calls = {
        path.name
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("flock", "lockf")
    }
    assert calls == {"file_lock.py"}
