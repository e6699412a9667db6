"""The command line as a person uses it: in a process of its own, from the checkout, on a small data set."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runyard.runs import journal
from runyard.runs.run import Run
from tests.support import waiting
from tests.support.settings import PATIENCE_S, ROOT, SMALL

API_KEY = "5ec7e75ec7e75ec7e75ec7e75ec7e75ec7e75ec7"
Refused = Callable[..., str]  # ``refused("create", "epochs=0")``: the one line that a command is refused with


@dataclass(frozen=True)
class Runs:
    """The folder that holds the runs of these tests, and what one says to make one."""

    folder: Path
    data_root: Path

    def settings(self, *overrides: str) -> list[str]:
        return ["experiment=null", *SMALL, f"data.root={self.data_root}", f"runs_dir={self.folder}", *overrides]

    def start(self, *arguments: str, program: tuple[str, ...] = ("-m", "runyard")) -> Command:
        return Command([sys.executable, *program, *arguments], self.folder)

    def create(self, *overrides: str) -> Run:
        """A run that nothing has trained yet."""
        made = self.start("create", *self.settings(*overrides))
        assert made.wait() == 0, made.stderr
        return Run.open(made.stdout.strip())


def environment() -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SUBMITIT"))}
    return inherited | {"OMP_NUM_THREADS": "1", "WANDB_API_KEY": API_KEY}


class Command:
    """A command that was started as a terminal starts it: at the head of a session and process group of its own."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._out, self._err = (open(folder / f".said-{time.monotonic_ns()}", "w+") for _ in range(2))  # noqa: SIM115
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), start_new_session=True, stdout=self._out, stderr=self._err,
            umask=0,  # the most open there is: what a run holds is its user's alone all the same
        )  # fmt: skip

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)

    @property
    def stdout(self) -> str:
        return Path(self._out.name).read_text()

    @property
    def stderr(self) -> str:
        return Path(self._err.name).read_text()

    def until_said(self, word: str) -> None:
        until(lambda: word in self.stdout, self)

    def run(self) -> Run:
        """The run that this command's first line names."""
        self.until_said("\n")
        return Run.open(self.stdout.splitlines()[0].rpartition(", in ")[2])

    def tasks(self) -> list[int]:
        """The process ids, by rank, of the job that this command's first line names."""
        controller = self.stdout.splitlines()[0].partition(", job ")[2].partition(",")[0]
        return [int(pid) for pid in Path(f"/proc/{controller}/task/{controller}/children").read_text().split()]

    def tasks_arguments(self) -> list[list[str]]:
        """What each of two tasks runs now: for a moment ``runyard.cluster.job.task``, then submitit."""
        lines = [Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in self.tasks()]
        return lines if len(lines) == 2 else [[], []]


def until(true: Callable[[], bool], command: Command | None = None) -> None:
    """Wait for a condition, but not for ever, nor beyond the end of ``command``."""

    def reached() -> bool:
        if true():
            return True
        assert command is None or command.process.poll() is None, command.stdout + command.stderr
        return False

    waiting.until(reached)


def rows(run: Run, event: str) -> list[journal.Row]:
    return [row for row in journal.read_journal(run.journal_path)[0] if row["event"] == event]


def processes_of(run: Run) -> dict[int, str]:
    """Controller, ranks, and whatever these started."""
    return waiting.processes_of(run.id)
