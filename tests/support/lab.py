"""A temporary SLURM as the tests use it: plain scripts of this machine's size, and how their jobs end."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runyard.cluster.rehearsal.sandbox import SlurmSandbox, missing_programs
from tests.support.settings import PATIENCE_S, ROOT

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Cluster:
    """The rehearsal and a folder for its jobs' output. Jobs are submitted from ``checkout``."""

    def __init__(self, sandbox: SlurmSandbox, output: Path) -> None:
        self.sandbox, self.output = sandbox, output
        sandbox.environment |= {"OMP_NUM_THREADS": "1", "RUNYARD_PYTHON": sys.executable}

    def submit(
        self,
        script: str,
        *arguments: object,
        nodes: int = 2,
        tasks: int = 2,
        options: tuple[str, ...] = (),
        checkout: Path = ROOT,
    ) -> str:
        """The job's number. Resources of this machine's size take the place of the script's."""
        size = [
            f"--nodes={nodes}",
            f"--ntasks-per-node={tasks}",
            "--gpus-per-node=0",
            "--cpus-per-task=1",
            "--mem=2G",
            f"--chdir={checkout}",
            f"--output={self.output}/%j.out",
        ]
        printed = self.sandbox.run(
            "sbatch", "--parsable", *size, *options, f"{checkout}/slurm/{script}", *map(str, arguments)
        )
        return printed.strip()

    def end(self, job: str, timeout_s: float = PATIENCE_S) -> tuple[str, str]:
        """State and exit code of ``job`` once it has ended."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            shown = self.sandbox.run("scontrol", "show", "job", job)
            state, code = re.findall(r"JobState=(\w+)|ExitCode=(\d+:\d+)", shown)
            if state[0] in ENDED:
                return state[0], code[1]
            time.sleep(0.2)
        raise TimeoutError(f"job {job} goes on:\n{self.said(job)}")

    def said(self, job: str) -> str:
        path = self.output / f"{job}.out"
        return path.read_text() if path.exists() else ""


@contextlib.contextmanager
def cluster_of(nodes: int, folder: Path) -> Iterator[Cluster]:
    if reason := missing_programs():
        pytest.skip(reason)
    with SlurmSandbox(folder / "lab", nodes=nodes, accounting=True) as sandbox:
        yield Cluster(sandbox, folder)
