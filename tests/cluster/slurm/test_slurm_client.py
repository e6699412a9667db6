"""How SLURM's commands are called: cleanly, and so that a controller that is away is told from a no."""

from __future__ import annotations

import time

import pytest

from runyard import slurm_client
from runyard.slurm_client import QueryError, SlurmRejected, SlurmUnavailable, run_query, run_with_retry
from tests.support.fake_slurm import FakeSlurm


def test_what_a_command_says_is_a_no_only_where_the_controller_is_up(slurm: FakeSlurm) -> None:
    slurm.program("scancel", "echo 'scancel: error: Unexpected message received for job 1' >&2; exit 1\n")
    with pytest.raises(SlurmRejected, match=r"^Unexpected message received for job"):
        run_query("scancel", "1")
    slurm.says("down")
    with pytest.raises(SlurmUnavailable, match=r"^scancel: Unexpected message received for job"):
        run_query("scancel", "1")


def test_a_controller_that_is_up_and_too_busy_has_not_answered(slurm: FakeSlurm) -> None:
    slurm.program("scancel", "echo 'Socket timed out on send/recv operation' >&2; exit 1\n")
    with pytest.raises(SlurmUnavailable):
        run_query("scancel", "1")
    slurm.program("scancel", "exec sleep 600\n")
    with pytest.raises(SlurmUnavailable, match=r"scancel did not answer within 0\.1 s"):
        run_query("scancel", "1", timeout_s=0.1)


def test_the_time_limit_of_a_question_holds_for_the_ping_after_it_too(slurm: FakeSlurm) -> None:
    slurm.program("scontrol", "exec sleep 30\n")
    slurm.program("squeue", "echo 'squeue: error: odd' >&2; exit 1\n")
    began = time.monotonic()
    with pytest.raises(SlurmUnavailable, match=r"^squeue: odd"):
        run_query("squeue", timeout_s=0.1)
    assert time.monotonic() - began < 20


def test_a_command_that_is_not_here_is_not_waited_for(slurm: FakeSlurm) -> None:
    with pytest.raises(QueryError, match="no srunx on") as missing:
        run_with_retry("srunx", wait_s=600)
    assert not isinstance(missing.value, SlurmUnavailable)


def test_who_waits_for_a_controller_says_so_once_and_hears_it_when_it_is_back(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm_client, "RETRY_INTERVAL_S", 0.01)
    slurm.says("down", "5")
    assert "Slurmctld" in run_with_retry("scontrol", "ping", wait_s=600)
    assert capsys.readouterr().err.count("SLURM does not answer") == 1
    slurm.says("down")
    with pytest.raises(SlurmUnavailable):
        run_with_retry("squeue", "--me", wait_s=0)
    assert capsys.readouterr().err == "", "who does not wait says nothing"


def test_what_people_set_for_themselves_reaches_none_of_our_calls(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.program("squeue", "env")
    for name in ("SQUEUE_STATES", "SACCT_FORMAT", "SINFO_FORMAT", "SCANCEL_STATE", "SCONTROL_ALL", "SLURM_TIME_FORMAT"):
        monkeypatch.setenv(name, "theirs")
    monkeypatch.setenv("SLURM_CONF", "kept")
    said = run_query("squeue")
    assert "theirs" not in said
    assert "SLURM_CONF=kept" in said
