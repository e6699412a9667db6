"""Runs on the real cluster through `runyard submit`, and what their journals tell of them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from runyard.runs import journal
from runyard.runs.run import Run
from runyard.training import checkpoint
from tests.support.lab import Cluster
from tests.support.settings import PATIENCE_S, ROOT, SMALL
from tests.support.trainings import final_state, same

EPOCHS, STEPS_PER_EPOCH = 8, 8
STEPS = EPOCHS * STEPS_PER_EPOCH
# Saved at stops alone, so that what is lost shows: tests that need saving by time ask for it.
RARE = ("checkpoint.every_s=null", "checkpoint.keep_best=false")
OFTEN = ("checkpoint.every_s=0.2", "checkpoint.keep_best=false", "checkpoint.keep_last=3")
AT_ONCE = 4  # stories: enough that SLURM's timers run out beside each other, few enough for two cores
nobody_listens = threading.Event()  # to stories any more: the tests were interrupted


class Runs:
    """Submits the small run of tests/training to ``cluster``, two nodes of one task unless asked otherwise."""

    def __init__(self, cluster: Cluster, data_root: Path, folder: Path) -> None:
        self.cluster, self.sandbox = cluster, cluster.sandbox
        self.settings = ("experiment=null", *SMALL, f"data.root={data_root}", f"runs_dir={folder}", f"epochs={EPOCHS}",
                         "cluster=rehearsal", "cluster.nodes=2")  # fmt: skip
        self.folder = folder

    def command(self, *words: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
        own = self.sandbox.environment | {"PYTHONPATH": f"{cwd / 'src'}:{cwd}"} | variables
        return subprocess.run(
            [sys.executable, "-m", "runyard", *words],
            cwd=cwd,
            env=own,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    def submit(self, *settings: str, options: tuple[str, ...] = (), cwd: Path = ROOT) -> Run:
        done = self.command("submit", "--json", *options, *self.settings, *settings, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return Run.open(json.loads(done.stdout)["path"])

    def create(self, *settings: str) -> Run:
        """A run for one of the plain scripts."""
        done = self.command("create", *self.settings, *settings)
        assert done.returncode == 0, done.stderr
        return Run.open(done.stdout.strip())

    def resume(self, run: Run, *settings: str) -> subprocess.CompletedProcess[str]:
        return self.command("resume", str(run.path), *settings)

    def queue(self) -> list[str]:
        return self.sandbox.run("squeue", "--noheader", "--array", "--format=%i").split()

    def nodes(self, start: dict[str, Any]) -> list[str]:
        """Where a start of a run was, its batch script's node first."""
        return self.sandbox.run("scontrol", "show", "hostnames", start["nodelist"]).split()


@contextlib.contextmanager
def at_once(runs: Runs, *stories: Callable[[Runs], Any]) -> Iterator[Callable[[Callable[[Runs], Any]], Any]]:
    """Tell ``stories`` side by side, each in a thread, the first first: nearly all of each is waiting.

    Gives what says how a story came out, once it has. A story starts no part of the cluster: that would end with its
    thread.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        told = {story: pool.submit(story, runs) for story in stories}
        try:
            yield lambda story: told[story].result()
        finally:
            nobody_listens.set()
            pool.shutdown(cancel_futures=True)
            nobody_listens.clear()


def rows(run: Run, event: str | None = None) -> list[dict[str, Any]]:
    return [row for row in journal.read_journal(run.journal_path)[0] if event in (None, row["event"])]


def until(true: Callable[[], object], run: Run, patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not true():
        assert not nobody_listens.is_set()
        assert time.monotonic() < deadline, f"waited in vain:\n{said(run)}"
        time.sleep(0.1)


def said(run: Run) -> str:
    logs = {path.name: path.read_text() for path in sorted((run.path / "slurm").glob("*.err"))}
    return "\n".join(f"{name}:\n{text}" for name, text in logs.items()) + str([r for r in rows(run) if "loss" not in r])


def job(run: Run) -> str:
    return str(Run.open(run.path).record["jobs"][-1]["id"])


def until_learning(run: Run, epochs: int = 1, start: int = 1) -> None:
    """Until its so manieth start has learned an epoch, or more."""

    def learned() -> bool:
        found = rows(run)
        starts = [at for at, row in enumerate(found) if row["event"] == "start"]
        return len(starts) >= start and sum(row["event"] == "epoch" for row in found[starts[start - 1] :]) >= epochs

    until(learned, run)


def until_started(run: Run, start: int) -> None:
    until(lambda: len(rows(run, "start")) >= start, run)


def until_finished(run: Run) -> None:
    until(lambda: run.is_finished, run)


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
    newest = checkpoint.newest_checkpoint(run.checkpoints)
    return 0 if newest is None else newest.step


def last_save(run: Run, before: float) -> int:
    """Step of the last checkpoint that was on disk at a time, by the journal: what comes after it may be lost."""
    return max((int(row["step"]) for row in rows(run, "checkpoint") if row["t"] <= before), default=0)


def learned_step(run: Run) -> int:
    """The step that the run was last seen at, half a second ago at most, by what `runyard status` reads too."""
    return int(json.loads((run.path / "progress.json").read_text())["step"])


def plain_tasks(run: Run) -> list[int]:
    """Process ids of the tasks that one of the plain scripts trains ``run`` with."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            trains = words[-5:-1] == [b"-m", b"runyard", b"train", os.fsencode(run.path)] and b"python" in words[0]
            if trains and b"torch.distributed.run" not in words:
                found.append(int(process.name))
    return found
