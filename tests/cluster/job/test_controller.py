"""A local job ends when a rank has failed, says who hangs and where, and passes on what its ranks are to hear."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runyard.cluster.job import controller
from runyard.runs import journal
from tests.support.commands import environment
from tests.support.commands import until as until_
from tests.support.settings import ROOT

LEADING = """
import shlex, sys
from pathlib import Path
from runyard.cluster.job import controller
controller.FAILURE_GRACE_S, controller.STACK_DUMP_S = float(sys.argv[2]), 0.5
command = [sys.executable, "-c", sys.argv[3]]
controller.Controller(Path(sys.argv[1]), command, 2, limit_s=float(sys.argv[4]), warning_s=0).run()
"""
# A rank that hears a stop as ours do, and then hangs for ever unless it is asked to stop.
WAITING = """
import os, sys, time
from runyard.training.stop_signals import StopFlag
rank, stop = os.environ["SUBMITIT_LOCAL_GLOBALID"], StopFlag()
def said_by(other):
    return open(os.readlink("/proc/self/fd/1").replace(f"_{{rank}}_log", f"_{{other}}_log")).read()
def until(true):
    while not true():
        time.sleep(0.02)
{first}
print("ready", flush=True)
while not stop():
    time.sleep(0.02)
print(stop().journal_text, flush=True)
"""


class Led:
    """A controller of two ranks, in a run's directory."""

    def __init__(self, run: Path, rank: str, grace_s: float = 0.2, limit_s: float = 600, held: bool = False) -> None:
        self.run, self.folder = run, run / "slurm"
        self.folder.mkdir(exist_ok=True)
        before = signal.pthread_sigmask(
            signal.SIG_BLOCK, controller.FORWARDED_SIGNALS if held else ()
        )  # as submit does
        self.process = subprocess.Popen(
            [sys.executable, "-c", LEADING, str(self.folder), str(grace_s), rank, str(limit_s)],
            cwd=ROOT, env=environment() | {"PYTHONPATH": f"{ROOT}/src:{ROOT}"},
        )  # fmt: skip
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def log(self, rank: int, kind: str = "out") -> str:
        path = self.folder / f"{self.process.pid}_{rank}_log.{kind}"
        return path.read_text() if path.exists() else ""

    def until_ready(self) -> None:
        until_(lambda: self.log(0).startswith("ready") and self.log(1).startswith("ready"))

    @property
    def last(self) -> dict[str, Any]:
        return journal.read_journal(self.run / "metrics.jsonl")[0][-1]


Lead = Callable[..., Led]


@pytest.fixture
def lead(tmp_path: Path) -> Iterator[Lead]:
    """``lead("if rank == '1': ...")``: two ranks that begin with that. A test that fails leaves none of them."""
    made: list[Led] = []

    def begin(first: str = "", **how: Any) -> Led:
        made.append(Led(tmp_path, WAITING.format(first=first), **how))
        return made[-1]

    yield begin
    for led in made:
        if led.process.poll() is None:
            pid = led.process.pid
            for task in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                os.kill(int(task), signal.SIGKILL)
            led.process.wait()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_what_asks_it_to_stop_reaches_every_rank_and_ends_neither_it_nor_them(lead: Lead, sent: signal.Signals) -> None:
    led = lead()
    led.until_ready()
    led.process.send_signal(sent)
    assert led.process.wait() == 0
    assert [led.log(rank) for rank in (0, 1)] == [f"ready\n{sent.name.removeprefix('SIG')}\n"] * 2


def test_a_stop_asked_in_its_first_instant_is_heard_by_ranks_that_were_not_there_yet(lead: Lead) -> None:
    led = lead(held=True)
    led.process.send_signal(signal.SIGTERM)
    assert led.process.wait() == 0
    assert [led.log(rank) for rank in (0, 1)] == ["ready\nTERM\n"] * 2
    control = lead()
    control.process.send_signal(signal.SIGTERM)
    assert control.process.wait() == -signal.SIGTERM, "the control: not held back, it ends the controller"


def test_once_a_rank_failed_one_that_hangs_is_shown_with_its_stack_and_ended(lead: Lead) -> None:
    led = lead("if rank == '1': until(lambda: 'ready' in said_by(0)); sys.exit('runyard: no such data')")
    assert led.process.wait() == 0
    assert 'File "<string>", line' in led.log(0, "err")
    assert "runyard: rank 0 did not end, and was killed; it was in state " in led.log(0, "err")
    assert led.last["message"].startswith("rank 0 did not end, and was killed; it was in state ")
    assert led.last["message"].endswith("; before that, rank 1 ended with 1: no such data")
    assert (led.last["reason"], led.last["retry"]) == ("failed", True)


def test_a_rank_that_is_stopped_is_named_and_ended_though_it_cannot_say_where_it_stands(lead: Lead) -> None:
    led = lead(
        "if rank == '1': print(os.getpid(), flush=True); os.kill(os.getpid(), 19)\n"
        "until(lambda: said_by(1).endswith('\\n'))\n"
        "until(lambda: 'T (stopped)' in open(f'/proc/{int(said_by(1))}/status').read())\n"
        "os.abort()"
    )
    assert led.process.wait() == 0
    assert "rank 1 did not end, and was killed; it was in state T (stopped)" in led.last["message"]
    assert "before that, rank 0 of 2 ended without a word: killed by SIGABRT" in led.last["message"]


def test_nobody_is_ended_while_none_has_failed(lead: Lead) -> None:
    led = lead("if rank == '1': sys.exit(0)")  # the control: it ended well
    until_(lambda: led.log(0).startswith("ready"))
    time.sleep(1)  # five times the grace
    assert led.process.poll() is None
    led.process.send_signal(signal.SIGUSR2)
    assert led.process.wait() == 0
    assert not (led.run / "metrics.jsonl").exists(), "all ended well: it has nothing to add"


def test_who_has_failed_is_noted_at_once_for_ranks_that_wait_for_it(lead: Lead) -> None:
    led = lead("if rank == '1': os.kill(os.getpid(), 9)", grace_s=600)
    until_(lambda: bool(list(led.folder.glob("ended-*"))))
    (notes,) = led.folder.glob(f"ended-{led.process.pid}-*.jsonl")
    until_(lambda: notes.read_text().endswith("\n"))
    assert json.loads(notes.read_text()) == {
        "rank": 1, "message": "of 2 ended without a word: killed by SIGKILL (signal 9)",
    }  # fmt: skip
    led.process.send_signal(signal.SIGTERM)
    assert led.process.wait() == 0
    assert not notes.exists()
    assert (led.last["reason"], led.last["cause"]) == ("interrupted", "TERM")


def test_at_its_limit_the_job_is_ended(lead: Lead) -> None:
    led = lead("stop = lambda: False", limit_s=1)
    assert led.process.wait() == 0
    assert "did not end" in led.last["message"]
    assert os.listdir(led.folder) == [p for p in os.listdir(led.folder) if not p.startswith("ended")]
