"""One real SLURM for the session: three nodes of two fake GPUs, accounting. Skipped, saying why, where none can be."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.rehearsal import Rehearsal
from runyard.errors import UserError
from tests.training.conftest import data_root, make_run

__all__ = ["data_root", "make_run"]  # the small runs of tests/training, here too
ROOT = Path(__file__).resolve().parents[2]
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Cluster:
    """The rehearsal and a folder for its jobs' output. Jobs are submitted from ``checkout``."""

    def __init__(self, lab: Rehearsal, output: Path) -> None:
        self.lab, self.output = lab, output
        lab.environment |= {"OMP_NUM_THREADS": "1", "RUNYARD_PYTHON": sys.executable}

    def submit(self, script: str, *arguments: object, nodes: int = 2, tasks: int = 2, options: tuple[str, ...] = (),
               checkout: Path = ROOT) -> str:
        """The job's number. Resources of this machine's size take the place of the script's."""
        size = [f"--nodes={nodes}", f"--ntasks-per-node={tasks}", "--gpus-per-node=0", "--cpus-per-task=1", "--mem=2G",
                f"--chdir={checkout}", f"--output={self.output}/%j.out"]
        printed = self.lab.run("sbatch", "--parsable", *size, *options, f"{checkout}/slurm/{script}",
                               *map(str, arguments))
        return printed.strip()

    def end(self, job: str, timeout_s: float = 120) -> tuple[str, str]:
        """State and exit code of ``job`` once it has ended."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            shown = self.lab.run("scontrol", "show", "job", job)
            state, code = re.findall(r"JobState=(\w+)|ExitCode=(\d+:\d+)", shown)
            if state[0] in ENDED:
                return state[0], code[1]
            time.sleep(0.2)
        raise TimeoutError(f"job {job} goes on:\n{self.said(job)}")

    def said(self, job: str) -> str:
        path = self.output / f"{job}.out"
        return path.read_text() if path.exists() else ""


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of this process: of two workers each has its own, and they run side by side."""
    folder = tmp_path_factory.mktemp("slurm")
    lab = Rehearsal(folder / "lab", nodes=3, accounting=True)
    try:
        lab.__enter__()
    except UserError as error:
        pytest.skip(str(error))
    try:
        yield Cluster(lab, folder)
    finally:
        lab.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def mended(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nodes that a test powered off or froze are back for the next."""
    yield
    if "slurm" in request.fixturenames:
        request.getfixturevalue("slurm").lab.mend()
