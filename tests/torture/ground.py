"""The ground on which attacks are made: a folder, small data, runs, and ranks that start in milliseconds."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from runyard.config.schema import Config
from runyard.runs import journal
from runyard.runs.run import Run
from tests.support.settings import PATIENCE_S, ROOT, SMALL, compose
from tests.support.trainings import final_state, same
from tests.support.zygote import First, Zygote

STEPS_PER_EPOCH, EPOCHS = 8, 3
# A global batch that 1, 2, 3, 4 and 6 ranks divide, with two micro-batches each.
SETTINGS = (
    *SMALL, "data.samples=[384,60]", "model.widths=[8,16]", f"epochs={EPOCHS}", "batch_size=48", "eval_batch_size=11",
    "checkpoint.every_epochs=1", "checkpoint.every_s=0.2", "checkpoint.keep_last=2", "report=true",
)  # fmt: skip
GRACE_S = 5  # for the other ranks, once one has ended badly; what they do of it themselves is row 5's
T = TypeVar("T")
SHOWN = ("epoch", "step", "train_loss", "train_top1", "test_loss", "test_top1", "lr", "grad_norm")


class Ground:
    """Where the attacks of one run of the harness are made. Used as a context: what it started ends with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs_dir = folder / "runs"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Ground:
        self.runs_dir.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @functools.cached_property
    def zygote(self) -> Zygote:
        return self.within(contextlib.closing(Zygote()))

    def within(self, opened: AbstractContextManager[T]) -> T:
        """What it gives; it is closed when this is left."""
        return self._stack.enter_context(opened)

    @functools.cached_property
    def data_root(self) -> Path:
        """Where the small data set is prepared."""
        from runyard.data.prepare.pipeline import prepare_dataset

        root = self.folder / "data"
        root.mkdir(exist_ok=True)
        prepare_dataset(compose(*SETTINGS, f"data.root={root}").data, progress=False)
        return root

    def words(self, *overrides: str) -> list[str]:
        """The small kind's settings, as one says them on a command line."""
        return ["experiment=null", *SETTINGS, f"data.root={self.data_root}", f"runs_dir={self.runs_dir}", *overrides]

    @functools.cache  # noqa: B019  it lives as long as the harness
    def config(self, *overrides: str) -> Config:
        return compose(*self.words(*overrides)[1:])

    def run(self, *overrides: str) -> Run:
        """A new run of the small kind."""
        return Run.create(self.config(*overrides), list(overrides))

    def start(
        self,
        run: Run,
        ranks: int,
        first: dict[int, First] | None = None,
        *,
        report: bool = False,
        zygote: Zygote | None = None,
        env: dict[str, str] | None = None,
    ) -> Ranks:
        """A new start of ``run`` on so many ranks; ``first`` says by rank what is called in it before it begins.

        Without a ``report``, whose figures take seconds: all that most attacks aim at is on disk before it. Of another
        ``zygote`` than this one's, and with variables of ``env`` in the ranks' environment, where these are given.
        """
        own = dict(first or {})
        if not report:
            own[0] = [("tests.torture.ground:leave_out_the_report",), *own.get(0, ())]
        return Ranks(zygote or self.zygote, run, ranks, own, env or {})

    def command(self, *words: str, env: dict[str, str] | None = None, first: First = ()) -> tuple[int, str]:
        """`runyard WORDS` in a forked process, in a folder of its own: its exit code, and all that it says."""
        return self.commands([words], env, first)[0]

    def commands(
        self, lines: Sequence[Sequence[str]], env: dict[str, str] | None = None, first: First = ()
    ) -> list[tuple[int, str]]:
        """Several command lines that begin together, as ``command``."""
        going = []
        for words in lines:
            place = self.scratch()
            said, there = place / "said", ("os:chdir", str(place))
            going.append((self.zygote.start(said, ("tests.support.zygote:say", *words), env, [there, *first]), said))
        return [(self.zygote.wait(pid), said.read_text(errors="replace")) for pid, said in going]

    def finish(self, run: Run, ranks: int) -> None:
        """Start it until it is finished, undisturbed."""
        for _ in range(3):
            if run.is_finished:
                return
            started = self.start(run, ranks)
            started.wait()
        assert run.is_finished, started.said

    @functools.cache  # noqa: B019
    def undisturbed(self, ranks: int, *overrides: str) -> Undisturbed:
        run = self.run(*overrides)
        began = time.monotonic()
        self.finish(run, ranks)
        return Undisturbed(run, time.monotonic() - began, final_state(run), curves(run))

    def scratch(self) -> Path:
        """A new empty folder."""
        folder = self.folder / f"scratch-{time.monotonic_ns()}"
        folder.mkdir()
        return folder


class Undisturbed:
    """What a run is compared with: the same settings on as many ranks, and nothing happened to it."""

    def __init__(self, run: Run, seconds: float, state: dict[str, Any], shown: list[dict[str, Any]]) -> None:
        self.run, self.seconds, self.state, self.shown = run, seconds, state, shown

    def differences(self, run: Run) -> str:
        """In words, what of weights, optimizer, counters and history is other than here; empty if nothing is."""
        state, found = final_state(run), []
        for part, wanted in self.state.items():
            if part == "evaluation":  # as far as one had come when the run was last saved: no result of it
                continue
            if not same(wanted, state.get(part)):
                found.append(part)
        if curves(run) != self.shown:
            found.append("history")
        return ", ".join(found)


def epochs(run: Run) -> int:
    """How many its journal tells of, those that were learned again among them."""
    return sum(row["event"] == "epoch" for row in journal.read_journal(run.journal_path)[0])


def curves(run: Run) -> list[dict[str, Any]]:
    """The journal's epochs, less what is no result: times."""
    return [{k: row[k] for k in SHOWN} for row in journal.epochs(journal.read_journal(run.journal_path)[0])]


def typed(*words: str) -> subprocess.Popen[str]:
    """A command in a terminal of its own, in processes of its own; all that it says comes on one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "runyard", *words], cwd=ROOT, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def discard(run: Run) -> None:
    """Delete the run: a thousand attacks must not fill the disk."""
    shutil.rmtree(run.path, ignore_errors=True)


class Ranks:
    """The processes of one start of a run, led as ``job.controller`` and srun lead them: once one has ended badly
    the others are told, and are killed where they do not end of it."""

    def __init__(self, zygote: Zygote, run: Run, count: int, first: dict[int, First], env: dict[str, str]) -> None:
        self._zygote, self.run = zygote, run
        job = str(time.monotonic_ns())
        self._notes = run.path / "slurm" / f"ended-{job}-0.jsonl"
        self._logs = [run.path / "slurm" / f"{job}_{rank}.log" for rank in range(count)]
        self.pids = [
            zygote.start(self._logs[rank], ("tests.torture.ground:train", str(run.path)), {
                "SUBMITIT_LOCAL_GLOBALID": str(rank), "SUBMITIT_LOCAL_LOCALID": str(rank),
                "SUBMITIT_LOCAL_NTASKS": str(count), "SUBMITIT_LOCAL_JOB_ID": job, "RUNYARD_START": "0", **env,
            }, first.get(rank, ()))
            for rank in range(count)
        ]  # fmt: skip

    def signal(self, rank: int, number: int) -> None:
        """One that has ended hears nothing."""
        if self._zygote.alive(self.pids[rank]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pids[rank], number)

    def wait(self) -> list[int]:
        """Their exit codes, by rank, once all have ended."""
        if (failed := self._zygote.first_to_fail(self.pids)) is not None:
            note = {"rank": self.pids.index(failed), "message": "ended badly"}
            self._notes.write_text(json.dumps(note) + "\n")
            if not self._zygote.all_ended(self.pids, GRACE_S):
                for rank in range(len(self.pids)):
                    self.signal(rank, signal.SIGKILL)
        return [self._zygote.wait(pid) for pid in self.pids]

    def alive(self) -> bool:
        """Whether all of them live."""
        return all(self._zygote.alive(pid) for pid in self.pids)

    @property
    def said(self) -> str:
        return "\n".join(path.read_text() for path in self._logs if path.exists())


def train(run_dir: str) -> None:
    """What a rank does: a job's task, as submitit would call it."""
    from runyard.cluster.job.train_job import TrainJob

    TrainJob(run_dir)()


def leave_out_the_report() -> None:
    """In a rank."""
    from runyard.training import trainer

    trainer._write_report = lambda *_: None  # type: ignore[assignment]


def until(true: Callable[[], object], what: str) -> None:
    """Wait for a condition, within the guard against hangs."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.005)
