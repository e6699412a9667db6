"""`runyard slurm`: a SLURM on this machine that outlives the command, and of which `down` leaves nothing.

What needs no SLURM, and so runs anywhere, is in tests/cluster/rehearsal/test_playground.py.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runyard.cluster.rehearsal.sandbox import missing_programs
from tests.support.settings import PATIENCE_S, ROOT, SMALL
from tests.support.waiting import processes_of, until

pytestmark = pytest.mark.slow
Done = subprocess.CompletedProcess[str]
Runyard = Callable[..., Done]


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For all that it writes. Its path is short: sockets lie in it."""
    return tmp_path_factory.mktemp("p")


@pytest.fixture
def runyard(folder: Path) -> Iterator[Runyard]:
    if reason := missing_programs(with_accounting=False):
        pytest.skip(reason)
    own = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")} | {"TMPDIR": str(folder)}

    def command(*words: str) -> Done:
        arguments = [sys.executable, "-m", "runyard", *words]
        return subprocess.run(arguments, cwd=ROOT, env=own, capture_output=True, text=True, timeout=PATIENCE_S)

    yield command
    assert command("slurm", "down").returncode == 0


def said(done: Done) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_is_learned_on_it_is_submit_status_logs_and_cancel_and_nothing_is_left_of_it(
    runyard: Runyard, folder: Path, data_root: Path
) -> None:
    bystander = subprocess.Popen(["sleep", str(PATIENCE_S)], env=os.environ | {"TMPDIR": str(folder)})
    started = said(runyard("slurm", "up", "--json"))
    assert (started["up"], started["started"], started["nodes"]) == (True, True, ["node1", "node2"])
    assert os.getsid(started["pid"]) == started["pid"], "the terminal's end is not its own"
    again = said(runyard("slurm", "up", "--json"))
    assert (again["started"], again["pid"]) == (False, started["pid"]), "one for each user"

    def inside(*words: str) -> Done:
        return runyard("slurm", "shell", "--", "runyard", *words)

    settings = [*SMALL, f"data.root={data_root}", f"runs_dir={folder / 'runs'}", "epochs=100000"]
    where = ("--runs-dir", str(folder / "runs"))
    submitted = inside("submit", "--json", "experiment=null", *settings, "cluster=slurm", "cluster.mem_gb=2")
    run = said(submitted)["run"]
    until(lambda: said(inside("status", "--json", *where, run))[0]["state"] == "running", lambda: inside("logs", run))
    assert "1 jobs running" in runyard("slurm", "status").stdout
    until(lambda: "epoch " in inside("logs", *where, run).stdout)
    cancelled = inside("cancel", *where, run)
    assert (cancelled.returncode, "saved" in cancelled.stdout) == (0, True), cancelled.stderr
    assert runyard("slurm", "shell", "--", "sh", "-c", "exit 7").returncode == 7

    assert said(runyard("slurm", "down", "--json"))["ended"]
    assert list(processes_of(folder)) == [bystander.pid], "what up started has ended, and nothing else"
    assert [path.name for path in (folder / f"runyard-slurm-{os.getuid()}").iterdir()] == ["lock"]
    bystander.kill()
    bystander.wait()
    status = runyard("slurm", "status")
    assert (status.returncode, "runyard slurm up" in status.stdout) == (1, True)


def test_one_whose_process_was_killed_counts_as_down_and_its_end_spares_the_next(runyard: Runyard) -> None:
    """What ended the first deleted the second's files and killed its daemons when both had one folder."""
    first = said(runyard("slurm", "up", "--json", "--nodes", "1"))
    with open(os.pidfd_open(first["pid"])) as process:
        os.kill(first["pid"], signal.SIGKILL)
        select.select([process], [], [], PATIENCE_S)
    second = said(runyard("slurm", "up", "--json", "--nodes", "1"))
    assert second["started"]
    until(lambda: not Path(first["slurm_conf"]).parent.exists())
    assert said(runyard("slurm", "status", "--json"))["pid"] == second["pid"]
    assert "node1" in runyard("slurm", "shell", "--", "sinfo", "--noheader", "--Node").stdout


def test_down_spares_a_process_that_has_got_its_id_since(runyard: Runyard, folder: Path) -> None:
    started = said(runyard("slurm", "up", "--json", "--nodes", "1"))
    record = folder / f"runyard-slurm-{os.getuid()}" / "playground.json"
    kept = record.read_text()
    with subprocess.Popen(["sleep", str(PATIENCE_S)]) as other:
        record.write_text(json.dumps(json.loads(kept) | {"pid": other.pid}))  # its start time is another
        assert runyard("slurm", "status").returncode == 1
        assert other.poll() is None
        other.kill()
    record.write_text(kept)
    assert said(runyard("slurm", "status", "--json"))["pid"] == started["pid"]
