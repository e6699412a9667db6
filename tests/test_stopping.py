"""Why a training is asked to stop: of several requests the one that counts, and the run's own clock."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from runyard.stopping import STOP_SIGNALS, UNSAVED_AT_S, Stop, StopFlag


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """This process's own, again after each test."""
    numbers = (*STOP_SIGNALS, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    faulthandler.cancel_dump_traceback_later()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_nothing_is_asked_at_first() -> None:
    stop = StopFlag()
    assert stop() is Stop.NO
    assert not stop()
    assert stop().words is None


@pytest.mark.parametrize(("sent", "heard", "words"), [
    ([signal.SIGUSR2], Stop.USR2, "USR2"),
    ([signal.SIGTERM], Stop.TERM, "TERM"),
    ([signal.SIGUSR2, signal.SIGTERM], Stop.TERM, "TERM"),
    ([signal.SIGTERM, signal.SIGUSR2], Stop.TERM, "TERM"),
], ids=["USR2", "TERM", "a cancel after a warning", "a warning after a cancel"])  # fmt: skip
def test_a_signal_is_heard_and_a_persons_wish_comes_first(sent: list[signal.Signals], heard: Stop, words: str) -> None:
    stop = StopFlag()
    for number in sent:
        signal.raise_signal(number)
    assert stop() is heard
    assert stop().words == words
    assert stop() is heard, "it stays asked"


def test_the_runs_own_clock_asks_before_the_jobs_end() -> None:
    stop, now = StopFlag(), int(time.time())
    stop.before_the_limit({"SLURM_JOB_END_TIME": str(now + 1000)}, 900)
    assert stop() is Stop.NO
    stop.before_the_limit({"SLURM_JOB_END_TIME": str(now + 1000)}, 1001)
    assert stop() is Stop.TIME_LIMIT
    assert stop().words == "time limit"


HANGS = """
import os, sys, time
from runyard.stopping import StopFlag
StopFlag().before_the_limit(os.environ, 0)
while time.time() < float(sys.argv[1]):
    pass
"""


def test_who_hangs_says_where_and_is_gone_just_before_the_limit() -> None:
    now = int(time.time())
    ends = {}
    for end in (now + UNSAVED_AT_S + 2, now + 1000):  # and a control
        ends[end] = subprocess.run([sys.executable, "-c", HANGS, str(now + 4)], capture_output=True, text=True,
                                   env=os.environ | {"SLURM_JOB_END_TIME": str(end)})  # fmt: skip
    hung, control = ends.values()
    assert hung.returncode == 1
    assert 'File "<string>", line 5 in <module>' in hung.stderr
    assert (control.returncode, control.stderr) == (0, "")


def test_what_was_asked_by_a_signal_comes_before_the_clock() -> None:
    stop = StopFlag()
    stop.before_the_limit({"SLURM_JOB_END_TIME": "1"}, 60)
    signal.raise_signal(signal.SIGTERM)
    assert stop() is Stop.TERM


@pytest.mark.parametrize("env", [{}, {"SLURM_JOB_END_TIME": ""}, {"SLURM_JOB_END_TIME": "UNLIMITED"}], ids=str)
def test_without_an_end_that_is_known_there_is_no_clock(env: dict[str, str]) -> None:
    stop = StopFlag()
    stop.before_the_limit(env, 10**12)
    assert stop() is Stop.NO


def test_the_highest_of_all_ranks_wishes_is_the_one_that_counts() -> None:
    """Ranks exchange them as numbers and take the largest."""
    assert Stop.NO < Stop.TIME_LIMIT < Stop.USR2 < Stop.TERM
    assert Stop(max(int(Stop.TIME_LIMIT), int(Stop.TERM))) is Stop.TERM


def test_once_it_ignores_requests_they_end_nothing() -> None:
    stop = StopFlag()
    stop.ignore()
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.raise_signal(number)
    assert stop() is Stop.NO


def test_a_request_that_was_held_while_the_task_started_is_heard() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    signal.raise_signal(signal.SIGUSR2)
    assert StopFlag()() is Stop.USR2
