"""What every test may use, and the rule that in continuous integration a skipped test is a failed run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from runyard.config.schema import Config
from tests.support.settings import ROOT, SMALL_DATA, compose

# Files of tests/slurm that share clusters and runs.
TOGETHER = {
    "faults.py": "runs", "environments.py": "runs", "plain_scripts.py": "runs",
    "rehearsal.py": "cluster", "rehearse.py": "cluster", "doctor.py": "cluster", "wandb_agent.py": "cluster",
    "submission.py": "queue", "chain.py": "queue", "pack.py": "queue", "sweep.py": "queue", "watching.py": "queue",
}  # fmt: skip


# A thread that waits for another by spinning takes the core which that one needs: where more threads than cores were
# busy, and under -n 2 they are, a step took a hundred times as long. Read when torch is loaded, here or in a child.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell starts what it puts into the background with SIGINT ignored, and nohup ignores SIGHUP: so would all that the
# tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.setdefault("NUMBA_CACHE_DIR", tempfile.gettempdir())  # each test has a folder of runs of its own


@pytest.fixture(autouse=True)
def wandb_let_go() -> Iterator[None]:
    """W&B's client keeps its helper and the settings it first met for the whole process: the next test has others."""
    yield
    if (wandb := sys.modules.get("wandb")) is not None:
        wandb.teardown()


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Config]:
    """``make_config("epochs=2", "data=synthetic")`` gives a checked ``Config``."""
    return compose


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root for data that is prepared once for all workers: who comes second waits. Not to be changed: take a copy."""
    mine = tmp_path_factory.getbasetemp()
    root = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "data"
    root.mkdir(exist_ok=True)
    return root


@pytest.fixture(scope="session")
def data_root(shared: Path) -> Path:
    """Where the small data set is prepared."""
    from runyard.data.prepare.pipeline import prepare_dataset

    root = shared / "small"
    root.mkdir(exist_ok=True)
    prepare_dataset(compose(*SMALL_DATA, f"data.root={root}").data, progress=False)
    return root


@pytest.fixture(scope="session")
def no_locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library for LD_PRELOAD with which a disk has no file locks; NO_LOCKS is the number of its error."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    built = tmp_path_factory.mktemp("no_locks") / "no_locks.so"
    source = ROOT / "tests" / "support" / "no_locks.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", built, source, "-ldl"], check=True)
    return built


class Together(LoadScopeScheduling):
    """Any test to any worker, but those of ``TOGETHER`` by the group."""

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER.get(nodeid.partition("::")[0].removeprefix("tests/slurm/test_"), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Together | None:
    """In place of xdist's own groups: its 3.8.0 writes them into what pytest 9.2 does not read any more."""
    return Together(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.hookimpl(tryfirst=True)  # before the terminal's own, which prints the exit code's meaning
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under CI=true a skipped test proves nothing, so the run fails: what a machine lacks, set-up must bring."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(terminal.stats.get("skipped", [])) if terminal else 0
    otherwise_fine = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if os.environ.get("CI") == "true" and skipped and otherwise_fine:
        terminal.write_line(f"CI=true: {skipped} skipped, and here a skip is a failure", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
