"""Which runs another job may be started for, and why the others are refused."""

from __future__ import annotations

import os
import shlex
import time
from types import SimpleNamespace
from typing import Any

import pytest

from runyard.cluster.launch.checks.preflight import (
    require_own_run,
    require_resumable,
)
from runyard.config.schema import Config
from runyard.errors import UserError
from runyard.runs.journal import Journal
from runyard.runs.run import Run
from tests.support import fabricated
from tests.support.fake_slurm import FakeSlurm
from tests.support.second_user import NOBODY, needs_root
from tests.support.settings import compose


@pytest.fixture
def run(small: list[str]) -> Run:
    config: Config = compose(*small)
    return Run.create(config, small)


def test_a_run_that_is_new_or_stopped_can_go_on(run: Run) -> None:
    require_resumable(run)
    Journal(run.journal_path).write("stop", reason="interrupted", message="")
    require_resumable(run)


def test_a_finished_run_is_refused(run: Run) -> None:
    journal = Journal(run.journal_path)
    journal.write("epoch", epoch=run.config.epochs)
    journal.write("stop", reason="finished", message="")
    with pytest.raises(UserError, match=f"^run {run.id} is finished: .* `runyard submit`"):
        require_resumable(run)


def test_a_run_that_is_being_written_is_refused(run: Run) -> None:
    lease = run.acquire_lease()
    with pytest.raises(UserError, match=f"^run {run.id} is being written by .*; wait for it, or stop it first"):
        require_resumable(run)
    lease.release()
    require_resumable(run)


def test_a_run_that_waits_in_the_queue_is_refused(run: Run, slurm: FakeSlurm) -> None:
    job = {"id": "4711", "launcher": "slurm", "cluster": "slurm", "nodes": 1, "logs": "slurm"}
    run.add_job(job | {"submitted": time.time()})
    fields: list[Any] = ["4711", "PENDING", "Priority", "0:00", "10:00", "N/A", "", run.id]
    slurm.program("squeue", f"echo {shlex.quote('|'.join(fields) + fabricated.runs(run.path))}")
    with pytest.raises(UserError, match=rf"^run {run.id} is waiting already \(job 4711\); see: runyard status"):
        require_resumable(run)
    slurm.program("squeue", "")
    require_resumable(run)


@needs_root
def test_another_users_run_is_refused_unless_a_person_trusts_it(run: Run) -> None:
    os.chown(run.path, NOBODY, -1)
    with pytest.raises(UserError, match=f"^run {run.id} belongs to nobody; begin one of your own.*--trust"):
        require_own_run(run)
    require_own_run(run, trusted=True)


def test_a_run_that_cannot_be_written_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anything
    with pytest.raises(UserError, match=r"its directory cannot be written \(d.*\); fix it with: chmod u\+rwx "):
        require_own_run(run)


def test_a_run_on_a_disk_that_is_mounted_read_only_is_refused_with_that_cause(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_own_run(run)  # the control
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    with pytest.raises(UserError, match="its disk is mounted read-only; copy its directory"):
        require_own_run(run)
