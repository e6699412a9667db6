"""Why a training is asked to stop: of several requests the one that counts, and the run's own clock."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runyard.slurm_client import QueryError
from runyard.training import end_time, stop_signals
from runyard.training.stop_signals import (
    HANG_EXIT_MARGIN_S,
    STOP_SIGNALS,
    StopFlag,
    StopReason,
    TrainingStopped,
    interruptible,
)
from tests.support.waiting import until


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
    assert stop() is StopReason.NO
    assert not stop()
    assert stop().journal_text is None


@pytest.mark.parametrize(("sent", "heard", "words"), [
    ([signal.SIGUSR2], StopReason.USR2, "USR2"),
    ([signal.SIGUSR1], StopReason.USR1, "USR1"),
    ([signal.SIGTERM], StopReason.TERM, "TERM"),
    ([signal.SIGUSR2, signal.SIGTERM], StopReason.TERM, "TERM"),
    ([signal.SIGTERM, signal.SIGUSR2], StopReason.TERM, "TERM"),
], ids=["USR2", "USR1", "TERM", "a cancel after a warning", "a warning after a cancel"])  # fmt: skip
def test_a_signal_is_heard_and_a_persons_wish_comes_first(
    sent: list[signal.Signals], heard: StopReason, words: str
) -> None:
    stop = StopFlag()
    for number in sent:
        signal.raise_signal(number)
    assert stop() is heard
    assert stop().journal_text == words
    assert stop() is heard, "it stays asked"


def test_the_runs_own_clock_asks_before_the_jobs_end() -> None:
    stop, now = StopFlag(), int(time.time())
    stop.watch_time_limit({"SLURM_JOB_END_TIME": str(now + 1000)}, 900)
    assert stop() is StopReason.NO
    stop.watch_time_limit({"SLURM_JOB_END_TIME": str(now + 1000)}, 1001)
    assert stop() is StopReason.TIME_LIMIT
    assert stop().journal_text == "time limit"


HANGS = """
import os, sys, time
from runyard.training.stop_signals import StopFlag
StopFlag().watch_time_limit(os.environ, 0)
while time.time() < float(sys.argv[1]):
    pass
"""


def test_who_hangs_says_where_and_is_gone_just_watch_time_limit() -> None:
    now = int(time.time())
    ends = {}
    for end in (now + HANG_EXIT_MARGIN_S + 2, now + 1000):  # and a control
        ends[end] = subprocess.run([sys.executable, "-c", HANGS, str(now + 4)], capture_output=True, text=True,
                                   env=os.environ | {"SLURM_JOB_END_TIME": str(end)})  # fmt: skip
    hung, control = ends.values()
    assert hung.returncode == 1
    assert 'File "<string>", line 5 in <module>' in hung.stderr
    assert (control.returncode, control.stderr) == (0, "")


def test_what_was_asked_by_a_signal_comes_before_the_clock() -> None:
    stop = StopFlag()
    stop.watch_time_limit({"SLURM_JOB_END_TIME": "1"}, 60)
    signal.raise_signal(signal.SIGTERM)
    assert stop() is StopReason.TERM


@pytest.mark.parametrize("env", [{}, {"SLURM_JOB_END_TIME": ""}, {"SLURM_JOB_END_TIME": "UNLIMITED"}], ids=str)
def test_without_an_end_that_is_known_there_is_no_clock(env: dict[str, str]) -> None:
    stop = StopFlag()
    stop.watch_time_limit(env, 10**12)
    assert stop() is StopReason.NO


def test_the_highest_of_all_ranks_wishes_is_the_one_that_counts() -> None:
    """Ranks exchange them as numbers and take the largest."""
    assert StopReason.NO < StopReason.TIME_LIMIT < StopReason.USR2 < StopReason.TERM
    assert StopReason(max(int(StopReason.TIME_LIMIT), int(StopReason.TERM))) is StopReason.TERM


def test_once_it_ignores_requests_they_end_nothing() -> None:
    stop = StopFlag()
    stop.ignore_signals()
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.raise_signal(number)
    assert stop() is StopReason.NO


def test_a_request_that_was_held_while_the_task_started_is_heard() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    signal.raise_signal(signal.SIGUSR2)
    assert StopFlag()() is StopReason.USR2


def test_a_stop_ends_at_once_what_comes_before_training_and_only_that() -> None:
    stop = StopFlag()
    with pytest.raises(TrainingStopped) as stopped, interruptible(stop):
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.stop is StopReason.TERM
    signal.raise_signal(signal.SIGTERM)  # the control: elsewhere it is noted, and answered at a step
    assert stop() is StopReason.TERM
    with pytest.raises(TrainingStopped), interruptible(stop):
        pytest.fail("it had come before")


def test_slurms_warning_and_the_clock_wait_for_the_first_step_at_which_the_run_is_saved() -> None:
    """Else a run that needs longer to start than its limit leaves it would never get further."""
    stop = StopFlag()
    with interruptible(stop):
        signal.raise_signal(signal.SIGUSR2)
        assert stop() is StopReason.USR2
    with interruptible(stop):
        assert stop() is StopReason.USR2
    with pytest.raises(TrainingStopped), interruptible(stop):
        signal.raise_signal(signal.SIGTERM)


def test_nothing_takes_a_stop_for_an_error_of_its_own() -> None:
    assert not issubclass(TrainingStopped, Exception)


@pytest.mark.parametrize(("said", "left_s"), [
    ("59:07", 3547), ("1:02:03", 3723), ("2-00:00:01", 172801), ("UNLIMITED", float("inf")), ("0:00", None),
    ("INVALID", None), ("NOT_SET", None), ("", None), ("N/A", None), ("1:00\n2:00", None),
])  # fmt: skip
def test_time_left_is_read_as_slurm_writes_it_and_all_else_is_unknown(said: str, left_s: float | None) -> None:
    assert end_time.parse_duration_s(said) == left_s


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What squeue says. It says nothing where a setting of the user's filters or formats."""
    (tmp_path / "squeue").write_text(
        f'#!/bin/sh\n[ -z "$SQUEUE_STATES$SLURM_TIME_FORMAT" ] && /bin/cat {tmp_path}/says\n'
    )
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SQUEUE_STATES", "PD")
    return tmp_path / "says"


def test_a_limit_that_is_raised_or_lowered_meanwhile_is_noticed(squeue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered, ask = threading.Semaphore(0), end_time.query_end_time

    def asked(job: str) -> float | None:
        end = ask(job)
        answered.release()
        return end

    monkeypatch.setattr(end_time, "query_end_time", asked)
    monkeypatch.setattr(stop_signals, "END_TIME_POLL_S", 0.05)
    stop, env = StopFlag(), {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()) + 100)}
    squeue.write_text("2:00:00\n")
    stop.watch_time_limit(env, margin_s=1000)  # by the old limit it would stop now
    until(lambda: stop() is StopReason.NO)
    for said in ("", "INVALID\n", "0:00\n"):  # an odd answer changes nothing
        squeue.write_text(said)
        assert [answered.acquire(timeout=600) for _ in range(4)] == [True] * 4
        assert stop() is StopReason.NO
    squeue.write_text("10:00\n")
    until(lambda: stop() is StopReason.TIME_LIMIT)
    (squeue.parent / "squeue").unlink()
    until(asks_no_more)


def asks_no_more() -> bool:
    return all(thread.name != "time limit" for thread in threading.enumerate())


def test_without_squeue_the_end_that_is_known_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(QueryError):
        end_time.query_end_time("7")
    stop = StopFlag()
    stop.watch_time_limit({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(time.time()) + 100)}, margin_s=1000)
    until(asks_no_more)
    assert stop() is StopReason.TIME_LIMIT


def test_an_end_that_has_passed_is_an_answer_that_was_not_understood() -> None:
    """``date`` takes an empty answer of squeue's for midnight: the run would save and end at every step."""
    stop = StopFlag()
    stop.watch_time_limit({"SLURM_JOB_END_TIME": str(int(time.time()) - 3600)}, margin_s=120)
    assert stop() is StopReason.NO
