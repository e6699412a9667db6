"""A task hears a request to stop whenever it comes, and its children never answer in its place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands import environment
from tests.support.settings import ROOT

EARLY = """
import os, signal, sys
os.kill(os.getpid(), signal.{name})  # while Python still imports
from runyard.training.stop_signals import StopFlag
print("alive", os.getsid(0) == os.getpid(), bool(StopFlag()()))
"""
CHILDREN = """
import os, signal, subprocess, sys
from runyard.training.stop_signals import StopFlag
stop = StopFlag()
child = os.fork()
if child == 0:
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        os.kill(os.getpid(), number)
    os._exit(42 if not stop() else 1)
_, status = os.waitpid(child, 0)
print("child", os.waitstatus_to_exitcode(status), "parent", bool(stop()))
os.kill(os.getpid(), signal.SIGUSR2)
print("parent", bool(stop()))
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
def test_a_stop_asked_of_a_task_that_is_starting_is_heard_later(name: str) -> None:
    done = python("-m", "runyard.cluster.job.task", "-c", EARLY.format(name=name))
    assert (done.returncode, done.stdout) == (0, "alive True True\n"), done.stderr
    control = python("-c", EARLY.format(name=name))
    assert (control.returncode, control.stdout) == (-getattr(signal, name), ""), "the control: alone it dies of it"


def test_a_forked_child_ignores_what_is_meant_for_its_parent() -> None:
    done = python("-c", CHILDREN)
    assert done.stdout == "child 42 parent False\nparent True\n", done.stderr


def test_the_terminals_interrupt_does_not_reach_a_task() -> None:
    sleeping = "import time; print('up', flush=True); time.sleep(60)"
    task = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; "
         f"subprocess.run([sys.executable, '-m', 'runyard.cluster.job.task', '-c', {sleeping!r}])"],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert task.stdout is not None
    assert task.stdout.readline() == "up\n"
    child = int(Path(f"/proc/{task.pid}/task/{task.pid}/children").read_text())
    os.killpg(task.pid, signal.SIGKILL)
    task.wait()
    time.sleep(0.05)
    assert "sleep" in Path(f"/proc/{child}/cmdline").read_text()
    os.kill(child, signal.SIGKILL)
