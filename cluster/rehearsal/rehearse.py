"""``runyard rehearse``: runs the experiment on a temporary local SLURM, interrupts it in three ways, and reports.

The queue costs hours, a rehearsal minutes. The run is the experiment's own with tiny data and few steps; everything
else, from the batch script to the checkpoints, is as in a real submission.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from runyard.cluster.launch.submit import SubmissionPlan, submit
from runyard.cluster.rehearsal.sandbox import SlurmSandbox
from runyard.cluster.rehearsal.scaled import EPOCHS, STEPS_PER_EPOCH, scale_down
from runyard.config.compose import Composed, compose
from runyard.errors import UserError
from runyard.runs import journal
from runyard.runs.events import Row
from runyard.runs.run import Run

STAGE_TIMEOUT_S = 300.0  # for the run to get from one interruption to the next
INTERRUPT_AFTER_EPOCHS = (1, 3, 5)  # one interruption after each of these


@dataclasses.dataclass(frozen=True)
class Interruption:
    """One interruption, a row of the table.

    Attributes:
        what: What interrupted the run.
        at_step: The last step that the journal shows before the next start.
        requeued_by: "its script" or "SLURM".
        resumed_at: The step at which the next start resumed.
        lost_steps: How many steps had to be trained again.
        lost_s: Seconds from the interruption to the next start.
    """

    what: str
    at_step: int
    requeued_by: str
    resumed_at: int
    lost_steps: int
    lost_s: float


@dataclasses.dataclass(frozen=True)
class RehearsalResult:
    """The result of a rehearsal.

    Attributes:
        tasks: How many tasks the run had, on all nodes.
        nodes: How many nodes the run had.
        up_s: Seconds until the cluster was up.
        interruptions: The interruptions, in order.
        equal: Whether the final weights equal those of the undisturbed run to the bit.
    """

    tasks: int
    nodes: int
    up_s: float
    interruptions: list[Interruption]
    equal: bool


class Rehearsal:
    """A temporary cluster, tiny data and two runs, in one folder that is deleted afterwards.

    Args:
        overrides: The experiment's overrides.
        report: Called with a line for each event.

    Raises:
        UserError: the overrides cannot be rehearsed.
    """

    def __init__(self, overrides: list[str], report: Callable[[str], None]) -> None:
        self.report = report
        self.composed = scale_down(overrides, report)
        self.cluster = self.composed.config.cluster

    def run(self) -> RehearsalResult:
        """Train twice, once undisturbed and once interrupted three times.

        Raises:
            UserError: the cluster did not start, the run failed, or it made no progress within ``STAGE_TIMEOUT_S``.
        """
        with temporary_folder() as folder, contextlib.ExitStack() as stack:
            start_time = time.monotonic()
            sandbox = stack.enter_context(SlurmSandbox(folder / "slurm", nodes=self.cluster.nodes + 1))
            up_s = time.monotonic() - start_time
            stack.enter_context(sandbox_environment(sandbox))
            self.report(f"a SLURM of {len(sandbox.nodes)} nodes is up after {up_s:.1f} s")
            self.composed = compose(
                [*self.composed.overrides, f"data.root={folder / 'data'}", f"runs_dir={folder / 'runs'}"]
            )
            prepare_data(self.composed)
            undisturbed = self._run()
            self._wait_until(undisturbed, lambda: undisturbed.is_finished)
            self.report(f"undisturbed: {EPOCHS * STEPS_PER_EPOCH} steps on {self._size()}")
            run = self._run()
            interruptions = [self._hit_time_limit(run), self._kill_rank(run), self._power_off(run, sandbox)]
            self._wait_until(run, lambda: run.is_finished)
            equal = same_weights(undisturbed, run)
            self.report(f"finished; final weights {'equal' if equal else 'DIFFER from'} the undisturbed run's")
            return RehearsalResult(self._tasks(), self.cluster.nodes, up_s, interruptions, equal)

    def _run(self) -> Run:
        return submit(SubmissionPlan([self.composed], None))[0][0]

    def _tasks(self) -> int:
        return self.cluster.nodes * (self.cluster.tasks_per_node or 1)

    def _size(self) -> str:
        return f"{self.cluster.nodes} nodes, {self._tasks()} tasks"

    def _hit_time_limit(self, run: Run) -> Interruption:
        def hold() -> None:
            for pid in tasks_of(run).values():
                os.kill(pid, signal.SIGSTOP)

        return self._interrupt(run, INTERRUPT_AFTER_EPOCHS[0], "time limit", hold)

    def _kill_rank(self, run: Run) -> Interruption:
        last = self._tasks() - 1
        return self._interrupt(
            run, INTERRUPT_AFTER_EPOCHS[1], f"rank {last} killed", lambda: os.kill(tasks_of(run)[last], signal.SIGKILL)
        )

    def _power_off(self, run: Run, sandbox: SlurmSandbox) -> Interruption:
        def cut() -> None:
            sandbox.power_off(sandbox.run("scontrol", "show", "hostnames", starts(run)[-1]["nodelist"]).split()[-1])

        return self._interrupt(run, INTERRUPT_AFTER_EPOCHS[2], "node without power", cut)

    def _interrupt(self, run: Run, epochs: int, what: str, interrupt: Callable[[], None]) -> Interruption:
        self._wait_until(run, lambda: len(journal.epochs(journal_rows(run))) >= epochs and has_progressed(run))
        start_count = len(starts(run))
        interrupt()
        interrupted_at, step = time.time(), max(row.get("step", 0) for row in journal_rows(run))
        self.report(f"{what}, after step {step}")
        self._wait_until(run, lambda: len(starts(run)) > start_count)
        start = starts(run)[-1]
        requeues = [row for row in journal_rows(run) if row["event"] == "requeue" and row["t"] > interrupted_at]
        requeued_by = "its script" if requeues else "SLURM"
        reached = max(
            row.get("step", 0) for row in journal_rows(run) if row["event"] != "start" and row["t"] < start["t"]
        )
        interruption = Interruption(
            what, reached, requeued_by, start["step"], reached - start["step"], start["t"] - interrupted_at
        )
        self.report(
            f"requeued by {requeued_by}, resumed at step {interruption.resumed_at}, {interruption.lost_s:.0f} s lost"
        )
        return interruption

    def _wait_until(self, run: Run, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + STAGE_TIMEOUT_S
        while not condition():
            stops = [row for row in journal_rows(run) if row["event"] == "stop" and row["reason"] == "failed"]
            if stops and (stops[-1].get("user_error") or not stops[-1].get("retry", True)):
                raise UserError(f"the rehearsed run failed: {stops[-1]['message']}")
            if time.monotonic() > deadline:
                logs = sorted((run.path / "slurm").glob("*_log.err"))
                last_lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()[-1:]]
                logged = "; ".join(last_lines) or "none"
                raise UserError(f"no progress within {STAGE_TIMEOUT_S:g} s", f"last lines of the logs: {logged}")
            time.sleep(0.1)


def prepare_data(composed: Composed) -> None:
    """Write the tiny data in a separate process: it needs FFCV, which this process does not import."""
    data = [o for o in composed.overrides if o.startswith(("data=", "data."))]
    completed = subprocess.run([sys.executable, "-m", "runyard", "prepare", *data], capture_output=True, text=True)
    if completed.returncode:
        raise UserError(f"the rehearsal's data could not be written: {completed.stderr.strip()}")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder that is deleted afterwards, even if this process is killed: a child process waits for its end.

    Raises:
        UserError: TMPDIR is too long, or has characters other than letters, digits and . _ - /.
    """
    parent = tempfile.gettempdir()
    if not re.fullmatch(r"/[A-Za-z0-9._/-]{0,54}", parent):
        raise UserError(
            f"TMPDIR={parent}: a rehearsal needs a path of at most 55 letters, digits and . _ - /", "try TMPDIR=/tmp"
        )
    folder = Path(tempfile.mkdtemp(prefix="runyard-"))
    read_end, write_end = os.pipe()
    cleaner = subprocess.Popen(
        ["sh", "-c", 'cat >/dev/null; rm -rf "$1"', "sh", str(folder)], stdin=read_end, start_new_session=True
    )
    os.close(read_end)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(write_end)
        cleaner.wait()


@contextlib.contextmanager
def sandbox_environment(sandbox: SlurmSandbox) -> Iterator[None]:
    """Make SLURM's commands use ``sandbox`` within the block, and let jobs inherit settings that suit one machine."""
    previous = dict(os.environ)
    os.environ.clear()
    os.environ.update(sandbox.environment | {"OMP_NUM_THREADS": "1", "RUNYARD_PYTHON": sys.executable})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(previous)


def journal_rows(run: Run) -> list[Row]:
    return journal.read_journal(run.journal_path)[0]


def starts(run: Run) -> list[Row]:
    return [row for row in journal_rows(run) if row["event"] == "start"]


def has_progressed(run: Run) -> bool:
    """Whether the newest start has saved a later step. Only then does an interruption show that it had resumed."""
    start_step = starts(run)[-1]["step"]
    return any(row["event"] == "checkpoint" and row["step"] > start_step for row in journal_rows(run))


def tasks_of(run: Run) -> dict[int, int]:
    """Return the process ids, in this machine's namespace, of the tasks that train ``run`` under submitit, by rank."""
    pids = {}
    for process in psutil.process_iter(["cmdline", "environ"]):  # None of one that may not be looked into
        arguments = set(process.info["cmdline"] or ())
        if "srun" not in arguments and {"submitit.core._submit", str(run.path / "slurm")} <= arguments:
            pids[int(process.info["environ"]["SLURM_PROCID"])] = process.pid
    return pids


def same_weights(one: Run, other: Run) -> bool:
    """Whether the networks in both runs' newest checkpoints are equal to the bit."""
    import torch

    from runyard.training import checkpoint

    networks = []
    for run in (one, other):
        newest = checkpoint.newest_checkpoint(run.checkpoints)
        networks.append({} if newest is None else newest.load()["network"])
    a, b = networks
    return bool(a) and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def print_result(result: RehearsalResult, *, as_json: bool) -> None:
    """Print the result as a table or as JSON."""
    if as_json:
        print(json.dumps(dataclasses.asdict(result)))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result.nodes} nodes, {result.tasks} tasks", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("interrupted by", "at step", "requeued by", "resumed at", "steps lost", "seconds lost"):
        table.add_column(heading, justify="left" if heading.endswith("by") else "right", no_wrap=True)
    for i in result.interruptions:
        table.add_row(i.what, str(i.at_step), i.requeued_by, str(i.resumed_at), str(i.lost_steps), f"{i.lost_s:.0f}")
    Console().print(table)
    print(f"final weights {'equal' if result.equal else 'DIFFER from'} those of the undisturbed rehearsal")
