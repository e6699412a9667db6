"""The throwaway cluster leaves nothing behind, whatever ends it, and its nodes can lose their power."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.rehearsal import Rehearsal
from runyard.errors import UserError
from tests.slurm.conftest import ROOT, Cluster

pytestmark = pytest.mark.slow
HOLD = """
import sys, time
from pathlib import Path
from cluster.rehearsal import Rehearsal
with Rehearsal(Path(sys.argv[1]), nodes=2, accounting=True) as lab:
    lab.run("sbatch", "--nodes=2", "--output=/dev/null", "--wrap", "srun sleep 600")
    print("up", flush=True)
    time.sleep(600)
"""


def processes_of(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(folder) in (process / "cmdline").read_bytes() + (process / "environ").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


def gone(folder: Path) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and (processes_of(folder) or folder.exists()):
        time.sleep(0.05)
    return not processes_of(folder) and not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_leaves_no_process_and_no_file(slurm: Cluster, tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "lab"
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        words = [(Path("/proc") / pid / "cmdline").read_bytes().split(b"\0")[0] for pid in processes_of(folder)]
        assert {b"mariadbd", b"slurmdbd", b"slurmctld", b"slurmd", b"munged"} <= set(words)
        holder.send_signal(number)
        holder.wait(10)
    assert gone(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("part", ["database/socket", "slurmdbd.conf", "log/slurmdbd.log", "log/slurmctld.log"])
def test_whatever_ends_it_while_it_starts_leaves_nothing_either(
    slurm: Cluster, tmp_path: Path, number: signal.Signals, part: str
) -> None:
    folder = tmp_path / "lab"
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as holder:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (folder / part).exists():
            time.sleep(0.01)
        assert (folder / part).exists()
        holder.send_signal(number)
        out, _ = holder.communicate(timeout=10)
        assert out == "", "it was still starting"
    assert gone(folder)


def test_a_body_that_raises_leaves_nothing_and_clusters_stand_side_by_side(slurm: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Rehearsal(tmp_path / "lab", nodes=3) as lab:  # noqa: PT012
        assert lab.run("sinfo", "--noheader", "--partition=main", "--format=%D %t").split() == ["3", "idle"]
        assert slurm.lab.run("sinfo", "--noheader", "--partition=main", "--format=%D").split() == ["3"]
        raise ZeroDivisionError
    assert processes_of(tmp_path / "lab") == []
    assert not (tmp_path / "lab").exists()


def test_a_node_without_power_takes_its_tasks_with_it(slurm: Cluster, tmp_path: Path) -> None:
    with Rehearsal(tmp_path / "lab", nodes=2) as lab:
        job = lab.run("sbatch", "--parsable", "--nodelist=node2", "--output=/dev/null", "--wrap", "sleep 600").strip()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and "RUNNING" not in lab.run("squeue", "--format=%T", "--job", job):
            time.sleep(0.05)
        before = len(processes_of(tmp_path / "lab"))
        lab.power_off("node2")
        assert len(processes_of(tmp_path / "lab")) <= before - 3  # the node, the job's script and its sleep
        assert lab.run("squeue", "--noheader", "--format=%T", "--job", job).strip() == "RUNNING", "nobody was told"


def test_a_folder_that_exists_is_refused(slurm: Cluster, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist yet"), Rehearsal(tmp_path):
        pass
    assert tmp_path.exists()
