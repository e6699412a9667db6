"""Runs on the real cluster through `runyard submit`, and what their journals tell of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.rehearsal import Rehearsal
from runyard.run import Run
from runyard.tracking import journal
from runyard.training import checkpoint
from tests.slurm.conftest import ROOT
from tests.training.conftest import SMALL, final_state, same

EPOCHS, STEPS_PER_EPOCH = 16, 8
STEPS = EPOCHS * STEPS_PER_EPOCH
# Saved at stops alone, so that what is lost shows: tests that need saving by time ask for it.
RARE = ("checkpoint.every_s=null", "checkpoint.keep_best=false")
OFTEN = ("checkpoint.every_s=0.2", "checkpoint.keep_best=false", "checkpoint.keep_last=3")
PATIENCE_S = 150


class Runs:
    """Submits the small run of tests/training to ``lab``, two nodes of one task unless asked otherwise."""

    def __init__(self, lab: Rehearsal, data_root: Path, folder: Path) -> None:
        self.lab = lab
        self.settings = ("experiment=null", *SMALL, f"data.root={data_root}", f"runs_dir={folder}", f"epochs={EPOCHS}",
                         "cluster=rehearsal", "cluster.nodes=2")  # fmt: skip
        self.folder = folder

    def command(self, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        own = self.lab.environment | {"PYTHONPATH": f"{cwd / 'src'}:{cwd}"}
        return subprocess.run(
            [sys.executable, "-m", "runyard", *words], cwd=cwd, env=own, capture_output=True, text=True, timeout=60
        )

    def submit(self, *settings: str, options: tuple[str, ...] = (), cwd: Path = ROOT) -> Run:
        done = self.command("submit", "--json", *options, *self.settings, *settings, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return Run.open(json.loads(done.stdout)["path"])

    def resume(self, run: Run, *settings: str) -> subprocess.CompletedProcess[str]:
        return self.command("resume", str(run.path), *settings)

    def queue(self) -> list[str]:
        return self.lab.run("squeue", "--noheader", "--array", "--format=%i").split()


def rows(run: Run, event: str | None = None) -> list[dict[str, Any]]:
    return [row for row in journal.read(run.journal_path)[0] if event in (None, row["event"])]


def until(true: Callable[[], object], run: Run, patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline, f"waited in vain:\n{said(run)}"
        time.sleep(0.05)


def said(run: Run) -> str:
    logs = {path.name: path.read_text() for path in sorted((run.path / "slurm").glob("*.err"))}
    return "\n".join(f"{name}:\n{text}" for name, text in logs.items()) + str([r for r in rows(run) if "loss" not in r])


def job(run: Run) -> str:
    return str(Run.open(run.path).record["jobs"][-1]["id"])


def until_learning(run: Run, epochs: int = 2) -> None:
    until(lambda: len(rows(run, "epoch")) >= epochs, run)


def until_finished(run: Run) -> None:
    until(lambda: run.finished, run)


def went_on(run: Run, whole: Run, *, most_restarts: int = 1) -> dict[str, Any]:
    """The run reached its end by itself, to the same bits as ``whole``. Returns its last start."""
    until_finished(run)
    starts = rows(run, "start")
    assert 1 < len(starts) <= most_restarts + 1, said(run)
    assert 0 < starts[-1]["step"] < STEPS, "it was to be interrupted on its way"
    assert same(final_state(whole), final_state(run))
    assert [row["step"] for row in journal.epochs(rows(run))] == [STEPS_PER_EPOCH * n for n in range(1, EPOCHS + 1)]
    return starts[-1]


def saved_step(run: Run) -> int:
    newest = checkpoint.newest(run.checkpoints)
    return 0 if newest is None else newest.step
