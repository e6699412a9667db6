"""Who may take a run's lease, and who is refused: on one node, over restarts, and between nodes without locks."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.errors import UserError
from runyard.runs import lease as lease_module
from runyard.runs import lease_holder as holder_module
from runyard.runs.lease import LeaseLost
from runyard.runs.lease_holder import LeaseHolder
from runyard.runs.run import Run
from tests.support.settings import PATIENCE_S
from tests.support.waiting import until


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder is gone after half a second of silence."""
    for module, name, value in (
        (lease_module, "LEASE_TIMEOUT_S", 0.5),
        (holder_module, "LEASE_TIMEOUT_S", 0.5),
        (lease_module, "LEASE_POLL_S", 0.02),
    ):
        monkeypatch.setattr(module, name, value)


def elsewhere(run: Run, age_s: float = 0.0, **fields: Any) -> Path:
    """A lease as a process on another node would have left it."""
    them = {"token": "theirs", "host": "node9", "boot": "another", "pid": 4711, "cluster": "lab", "locked": True}
    path = run.path / "lease"
    path.write_bytes(LeaseHolder(**(them | fields)).to_bytes())
    os.utime(path, (time.time() - age_s,) * 2)
    return path


HOLD = """
import sys
from runyard.runs import lease
lease.LEASE_HEARTBEAT_S = 0.05
from runyard.runs.run import Run
held = Run.open(sys.argv[1]).acquire_lease()
print("held", flush=True)
for line in sys.stdin:
    held.check()
    print("mine", flush=True)
"""


def test_a_run_has_no_holder_before_after_and_when_the_holder_died(run: Run, start: Callable[..., Any]) -> None:
    before = sorted(run.path.iterdir())
    assert run.lease_holder() is None
    lease = run.acquire_lease()
    assert run.lease_holder() == f"process {os.getpid()} on {os.uname().nodename}, last seen 0 s ago"
    lease.release()
    assert run.lease_holder() is None
    assert sorted(run.path.iterdir()) == before
    dead = start(HOLD, run.path)
    dead.kill()
    dead.wait()
    assert run.lease_holder() is None


def test_asking_who_holds_a_run_does_not_disturb_the_holder(run: Run, start: Callable[..., Any]) -> None:
    process = start(HOLD, run.path, SLURM_ARRAY_JOB_ID="12", SLURM_ARRAY_TASK_ID="4", SLURM_RESTART_COUNT="2")
    first = (run.path / "lease").read_bytes()
    said = run.lease_holder()
    assert said is not None
    assert said.startswith(f"process {process.pid} on {os.uname().nodename} (job 12_4, restart 2), last seen ")
    assert (run.path / "lease").read_bytes() == first
    print("?", file=process.stdin, flush=True)
    assert process.stdout.readline() == "mine\n"


def test_a_holder_beats(run: Run, start: Callable[..., Any]) -> None:
    start(HOLD, run.path)
    seen = (run.path / "lease").stat().st_mtime_ns
    until(lambda: (run.path / "lease").stat().st_mtime_ns > seen)


def test_ages_do_not_depend_on_this_nodes_clock(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(run, age_s=20)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    said = run.lease_holder()
    assert said is not None
    assert said.endswith("last seen 20 s ago")

    def refuse(folder: Path) -> float:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(lease_module, "file_system_time", refuse)
    assert run.lease_holder() is not None, "who may only read must use it, wrong as it is"


def test_one_that_was_silent_for_a_minute_is_no_holder(run: Run) -> None:
    elsewhere(run, age_s=100)
    assert run.lease_holder() is None


FORK = """
import os, sys
TAMPER
from runyard.runs.run import Run
lease = Run.open(sys.argv[1]).acquire_lease()
if os.fork() == 0:
    print("held", flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.mark.parametrize("tamper", ["", "os.register_at_fork = lambda **_: None"], ids=["as it is", "control"])
def test_children_that_outlive_a_holder_do_not_hold_its_lease(run: Run, start: Callable[..., Any], tamper: str) -> None:
    parent = start(FORK.replace("TAMPER", tamper), run.path)
    parent.kill()
    parent.wait()
    if tamper:
        with pytest.raises(UserError, match=f"is being written by process {parent.pid}"):
            run.acquire_lease()
    else:
        run.acquire_lease().release()


# A job that was requeued


def test_a_later_start_of_a_job_takes_over_at_once_and_an_earlier_one_is_refused(
    run: Run, job: Callable[..., None]
) -> None:
    job(12)
    first = run.acquire_lease()
    job(12, restarts=1)
    second = run.acquire_lease()
    with pytest.raises(LeaseLost, match=rf"taken over by process {os.getpid()} on .* \(job 12, restart 1\)"):
        first.check()
    second.check()
    first.release()
    second.check()
    job(12)
    with pytest.raises(UserError, match=r"is being written by process \d+ on .* \(job 12, restart 1\)"):
        run.acquire_lease()
    second.release()
    with pytest.raises(LeaseLost, match="its lease is gone"):
        second.check()


def test_what_a_jobs_end_leaves_to_be_written_is_not_its_own_when_another_has_the_run(
    run: Run, job: Callable[..., None]
) -> None:
    job(12, restarts=1)
    assert run.successor() is None
    lease = run.acquire_lease()
    assert run.successor() is None
    job(12)
    assert run.successor() == f"process {os.getpid()} on {os.uname().nodename} (job 12, restart 1)"
    job(11)
    assert (run.successor() or "").endswith("(job 12, restart 1), last seen 0 s ago")
    lease.release()
    assert run.successor() is None


# Another job, which SLURM is asked about


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``squeue("RUNNING")``: what it says from now on, over and over its last word."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def says(*words: str, stderr: str = "", code: int = 0) -> None:
        (folder / "words").write_text("".join(f"{word}\n" for word in words))
        (folder / "squeue").write_text(
            f'#!/bin/sh\ncd {folder}; echo "$@" >asked; head -1 words\n[ $(wc -l <words) = 1 ] || sed -i 1d words\n'
            f'echo "{stderr}" >&2; exit {code}\n'
        )
        (folder / "squeue").chmod(0o755)

    return says


@pytest.mark.parametrize(
    ("answer", "age_s", "taken"),
    [
        (("RUNNING",), 0, False),
        (("RUNNING",), 100, True),
        (("CONFIGURING",), 0, False),
        (("SUSPENDED",), 100, False),
        (("",), 0, True),
        (("PENDING",), 0, True),
        (("NODE_FAIL",), 0, True),
        (("COMPLETING",), 100, True),
        (("COMPLETING", "COMPLETING", "COMPLETED"), 0, True),
    ],
)
def test_of_another_job_squeue_says_whether_it_is_over(
    run: Run,
    job: Callable[..., None],
    squeue: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    answer: tuple[str, ...],
    age_s: float,
    taken: bool,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(lease_module, "LEASE_POLL_S", 0.01)
    elsewhere(run, age_s, job="12_4")
    job(13)
    squeue(*answer)
    if taken:
        run.acquire_lease().release()
    else:
        with pytest.raises(UserError, match=r"is being written by process 4711 on node9 \(job 12_4\), last seen \d+ s"):
            run.acquire_lease()
    assert (tmp_path / "bin" / "asked").read_text() == "--noheader --jobs=12_4 --states=all --format=%T\n"


def test_a_job_that_slurm_has_forgotten_is_over(
    run: Run, job: Callable[..., None], squeue: Callable[..., None]
) -> None:
    elsewhere(run, job="12")
    job(13)
    squeue("", stderr="slurm_load_jobs error: Invalid job id specified", code=1)
    run.acquire_lease().release()


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("why", ["down", "slow", "missing", "another cluster's", "no job"])
def test_where_slurm_has_no_answer_the_heartbeat_decides(
    run: Run,
    job: Callable[..., None],
    squeue: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    why: str,
    tmp_path: Path,
) -> None:
    def left(age_s: float = 0) -> Path:
        return elsewhere(
            run, age_s, job=None if why == "no job" else "12", cluster="other" if why == "another cluster's" else "lab"
        )

    job(13)
    squeue("", stderr="Unable to contact slurm controller", code=1)
    if why == "slow":
        monkeypatch.setattr(holder_module, "SQUEUE_TIMEOUT_S", 0.05)
        (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\nexec sleep 30\n")
    elif why == "missing":
        monkeypatch.setenv("PATH", "/nonexistent")
    left(age_s=30)
    run.acquire_lease().release()
    path, ended = left(), threading.Event()

    def beat() -> None:
        while not ended.wait(0.1):
            os.utime(path)

    beating = threading.Thread(target=beat)
    beating.start()
    with pytest.raises(UserError, match=r"is being written by process 4711 on node9"):
        run.acquire_lease()
    ended.set()
    beating.join()
    capfd.readouterr()
    run.acquire_lease().release()
    said = capfd.readouterr().err
    assert said.startswith(f"runyard: run {run.id}: last written by process 4711 on node9")
    assert said.endswith("taken over if not seen for 0.5 s\n")
    assert len(said.splitlines()) == 1


def test_what_an_earlier_version_left_is_taken(run: Run) -> None:
    (run.path / "lease").write_text("process 12 on node1")
    os.utime(run.path / "lease", (0, 0))
    run.acquire_lease().release()


@pytest.mark.usefixtures("hasty")
def test_a_gate_that_a_kill_left_closed_opens_again(run: Run) -> None:
    (run.path / ".lease-gate").touch()
    run.acquire_lease().release()
    assert not (run.path / ".lease-gate").exists()


def test_where_there_are_no_locks_a_lease_is_taken_held_and_refused_all_the_same(
    run: Run, job: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(lease_module, "LEASE_HEARTBEAT_S", 0.05)
    monkeypatch.setattr(lease_module, "LEASE_POLL_S", 0.02)
    first = run.acquire_lease()
    with pytest.raises(UserError, match="is being written by"):
        run.acquire_lease()
    first.check()
    first.release()
    run.acquire_lease().release()


RACE = """
import contextlib, errno, fcntl, os, sys, time
from pathlib import Path
from types import SimpleNamespace

def no_locks(*_):
    raise OSError(errno.ENOSYS, "no locks here")

fcntl.flock = no_locks
os.uname = lambda: SimpleNamespace(nodename="node" + sys.argv[1])
from runyard.runs import lease
from runyard.errors import UserError
lease.LEASE_HEARTBEAT_S, lease.LEASE_POLL_S = 0.05, 0.01
TAMPER
print("held", flush=True)

def together(what):
    # goes on once all four are here, however slow one is
    (Path(sys.argv[3]) / f"{what}-{sys.argv[1]}").touch()
    while len(list(Path(sys.argv[3]).glob(f"{what}-*"))) < 4:
        time.sleep(0.001)

held = {}
for folder in sorted(Path(sys.argv[2]).iterdir()):
    together(folder.name)
    try:
        held[folder.name] = lease.Lease(folder, folder.name)
    except UserError:
        pass
together("end")
for name in held:
    print(name, flush=True)
for one in held.values():
    one.check()
"""


@pytest.mark.parametrize(
    "tamper", ["", "lease._gate = lambda folder: contextlib.nullcontext(True)"], ids=["as it is", "control"]
)
def test_of_many_that_start_at_once_on_nodes_without_locks_exactly_one_wins(
    tmp_path: Path, start: Callable[..., Any], tamper: str
) -> None:
    runs, marks = tmp_path / "runs", tmp_path / "marks"
    marks.mkdir()
    for i in range(10):
        (runs / f"{i:02d}").mkdir(parents=True)
        if i % 2:
            (runs / f"{i:02d}" / "lease").write_bytes(LeaseHolder(token="gone", host="node9").to_bytes())
            os.utime(runs / f"{i:02d}" / "lease", (0, 0))
    nodes = [start(RACE.replace("TAMPER", tamper), node, runs, marks) for node in range(4)]
    said = [node.communicate(timeout=PATIENCE_S) for node in nodes]
    winners = sorted(line for out, _ in said for line in out.splitlines())
    if tamper:
        assert len(winners) > len(set(winners)), "without the gate several win"
    else:
        assert winners == [f"{i:02d}" for i in range(10)], said
        assert [node.returncode for node in nodes] == [0] * 4, said
