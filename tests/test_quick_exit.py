"""A task ends as Python ends, with the same exit code and nothing lost, but without Python's teardown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import environment

ENDS = {
    "": 0,
    "sys.exit()": 0,
    "sys.exit(0)": 0,
    "sys.exit(130)": 130,
    "sys.exit('in words')": 1,
    "raise RuntimeError('a fault')": 1,
    "os.kill(os.getpid(), signal.SIGINT)": -2,
}
PROGRAM = """
import atexit, os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
class Torn:
    def __del__(self):
        os.write(1, b"torn down\\n")
torn = Torn()
atexit.register(print, "exit handler ran")
threading.Thread(target=lambda: (time.sleep(0.3), print("thread ended"))).start()
print("arguments", *sys.argv[1:], end=" ")
{end}
"""
TORN = "torn down\n"


def program(folder: Path, end: str) -> None:
    (folder / "program.py").write_text(PROGRAM.format(end=end))


def python(folder: Path, *arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    own = environment()
    own["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), own.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=own, stdout=stdout, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("end", ENDS)
def test_a_program_ends_as_python_ends_it_less_the_teardown(tmp_path: Path, end: str) -> None:
    program(tmp_path, end)
    quick = python(tmp_path, "-m", "runyard.quick_exit", "program", "a", "-b")
    control = python(tmp_path, "-m", "program", "a", "-b")
    assert quick.returncode == control.returncode == ENDS[end]
    assert control.stdout == f"arguments a -b thread ended\nexit handler ran\n{TORN}"
    slow = end.startswith(("os.kill", "sys.exit('"))  # Python alone knows how to end these
    assert quick.stdout == control.stdout.removesuffix("" if slow else TORN)
    assert quick.stderr.splitlines()[-1:] == control.stderr.splitlines()[-1:]


def test_a_task_is_not_torn_down(tmp_path: Path) -> None:
    program(tmp_path, "")
    done = python(tmp_path, "-m", "runyard.cluster.job.task", "-u", "-m", "program", "a")
    assert (done.returncode, done.stdout) == (0, "arguments a thread ended\nexit handler ran\n")


def test_output_that_cannot_be_written_is_not_lost_in_silence(tmp_path: Path) -> None:
    program(tmp_path, "")
    with open("/dev/full", "w") as full:
        quick = python(tmp_path, "-m", "runyard.quick_exit", "program", stdout=full.fileno())
        control = python(tmp_path, "-m", "program", stdout=full.fileno())
    assert quick.returncode == control.returncode == 120
    assert "No space left on device" in quick.stderr
