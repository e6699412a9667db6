"""The temporary cluster: nothing is left of it whatever ends it, it is open to nobody else, and each fault is one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runyard.cluster.rehearsal import accounting
from runyard.cluster.rehearsal.sandbox import SlurmSandbox
from runyard.cluster.rehearsal.slurm_conf import PREEMPT_GRACE_S
from runyard.errors import UserError
from tests.support.lab import Cluster
from tests.support.settings import PATIENCE_S, ROOT
from tests.support.waiting import processes_of

pytestmark = pytest.mark.slow
HOLD = """
import sys, time
from pathlib import Path
from runyard.cluster.rehearsal.sandbox import SlurmSandbox
with SlurmSandbox(Path(sys.argv[1]), nodes=2, accounting=True) as lab:
    lab.run("sbatch", "--nodes=2", "--output=/dev/null", "--wrap", "srun sleep 600")
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def mended(slurm: Cluster) -> Iterator[None]:
    """Nodes that a test powered off or froze are back for the next."""
    yield
    slurm.sandbox.restore()


def gone(folder: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and (processes_of(folder) or folder.exists()):
        time.sleep(0.05)
    return not processes_of(folder) and not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_leaves_no_process_and_no_file(slurm: Cluster, tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "lab"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        words = [(Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")[0] for pid in processes_of(folder)]
        assert {b"mariadbd", b"slurmdbd", b"slurmctld", b"slurmd", b"munged"} <= set(words)
        holder.send_signal(number)
        holder.wait(PATIENCE_S)
    assert gone(folder)


STARTING = ("database/socket", "slurmdbd.conf", "log/slurmdbd.log", "log/slurmctld.log")  # written in this order


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_it_while_it_starts_leaves_nothing_either(
    slurm: Cluster, tmp_path: Path, number: signal.Signals
) -> None:
    """Four clusters start side by side, and each is ended as soon as another part of it is there."""
    with ThreadPoolExecutor(len(STARTING)) as side_by_side:
        folders = side_by_side.map(lambda n: ended_while_starting(tmp_path / f"{n}", number, STARTING[n]), range(4))
        assert all(gone(folder) for folder in folders)


def ended_while_starting(folder: Path, number: signal.Signals, part: str) -> Path:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as holder:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and not (folder / part).exists():
            time.sleep(0.01)
        assert (folder / part).exists()
        holder.send_signal(number)
        out, _ = holder.communicate(timeout=PATIENCE_S)
        assert out == "", "it was still starting"
    return folder


def test_a_body_that_raises_leaves_nothing_and_clusters_stand_side_by_side(slurm: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), SlurmSandbox(tmp_path / "lab", nodes=3) as sandbox:  # noqa: PT012
        assert sandbox.run("sinfo", "--noheader", "--partition=main", "--format=%D %t").split() == ["3", "idle"]
        assert slurm.sandbox.run("sinfo", "--noheader", "--partition=main", "--format=%D").split() == ["3"]
        raise ZeroDivisionError
    assert processes_of(tmp_path / "lab") == {}
    assert not (tmp_path / "lab").exists()


def test_a_folder_that_exists_is_refused(slurm: Cluster, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist yet"), SlurmSandbox(tmp_path):
        pass
    assert tmp_path.exists()


def test_a_user_without_rights_has_all_of_it(slurm: Cluster) -> None:
    """Here ``nobody`` is that user."""
    if os.getuid() != 0:
        pytest.skip("run by an ordinary user, the other tests show it")
    program = """
import sys, time
from pathlib import Path
from runyard.cluster.rehearsal.sandbox import SlurmSandbox
with SlurmSandbox(Path(sys.argv[1]), nodes=2, accounting=True) as lab:
    lab.power_off("node2")
    lab.power_on("node2")
    lab.run("sbatch", "--wait", "--nodes=2", "--gpus-per-node=2", "--output=/dev/null", "--wrap", "srun true")
    deadline = time.monotonic() + 900
    while not (told := lab.run("sacct", "--noheader", "--allocations", "--format=user,account,state").split()):
        assert time.monotonic() < deadline  # accounting hears of a job a little later
    print(*told)
"""
    folder = Path(tempfile.mkdtemp(prefix="nobody-"))  # pytest's own folders are for root alone
    try:
        (folder / "runyard").mkdir()
        shutil.copytree(ROOT / "cluster", folder / "runyard" / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
        for module in (ROOT / "src" / "runyard").glob("*.py"):
            shutil.copy(module, folder / "runyard")
        folder.chmod(0o777)
        done = subprocess.run(
            ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", os.path.realpath(sys.executable), "-c",
             program, folder / "lab"], cwd=folder, env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, text=True)  # fmt: skip
        assert (done.stdout, done.stderr) == ("nobody lab COMPLETED\n", "")
        assert gone(folder / "lab")
    finally:
        shutil.rmtree(folder)


def listening(folder: Path) -> dict[str, set[str]]:
    """Addresses, as /proc writes them, on which programs of the cluster in ``folder`` listen."""
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A":  # LISTEN
                sockets[f"socket:[{fields[9]}]"] = fields[1].partition(":")[0]
    found: dict[str, set[str]] = {}
    for pid in processes_of(folder):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").glob("*") if link.is_symlink()]
        if addresses := {sockets[link] for link in links if link in sockets}:
            found.setdefault(name, set()).update(addresses)
    return found


def test_all_listen_on_loopback_alone(slurm: Cluster) -> None:
    job = started(slurm, "srun sleep 600", "--nodes=3")
    until(lambda: {"slurmctld", "slurmd", "slurmdbd", "srun"} <= set(listening(slurm.sandbox.folder)))
    found = listening(slurm.sandbox.folder)
    slurm.sandbox.run("scancel", job)
    assert set.union(*found.values()) == {"0100007F"}  # 127.0.0.1


def test_without_its_setting_slurmdbd_would_be_open_to_all(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    setting = "CommunicationParameters=NoInAddrAny\n"
    assert setting in accounting.SLURMDBD
    monkeypatch.setattr(accounting, "SLURMDBD", accounting.SLURMDBD.replace(setting, ""))
    with SlurmSandbox(tmp_path / "lab", nodes=1, accounting=True):
        assert listening(tmp_path / "lab")["slurmdbd"] == {"00000000"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--account=elsewhere", "Invalid account"),
        ("--qos=elsewhere", "Invalid qos"),
        ("--qos=short --time=11", "QOSMaxWallDurationPerJobLimit"),
        ("--partition=elsewhere", "invalid partition"),
        ("--gres=gpu:3", "node configuration is not available"),
        ("--gpus-per-node=3", "node configuration is not available"),
    ],
)
def test_what_the_cluster_cannot_give_is_refused_when_submitted(slurm: Cluster, options: str, reason: str) -> None:
    before = jobs(slurm)
    assert reason in slurm.sandbox.run("sbatch", *options.split(), "--wrap", "true", check=False)
    assert jobs(slurm) <= before  # the test before may leave one that is completing


def jobs(slurm: Cluster) -> set[str]:
    return set(slurm.sandbox.run("squeue", "--noheader", "--format=%i").split())


@pytest.mark.parametrize("options", ["--gres=gpu:2", "--gpus-per-node=2 --qos=short --time=10"])
def test_fake_gpus_are_given_counted_and_no_gpus_to_torch(slurm: Cluster, options: str) -> None:
    says = f"{sys.executable} -c 'import torch; print(torch.cuda.is_available(), torch.cuda.device_count())'"
    wrap = f'srun --nodes=1 --ntasks=1 sh -c "echo \\$CUDA_VISIBLE_DEVICES" && {says}'
    job = started(slurm, wrap, "--nodes=2", *options.split())
    assert slurm.end(job) == ("COMPLETED", "0:0")
    assert slurm.said(job).splitlines() == ["0,1", "False 0"]
    asked = ("--allocations", "--noheader", "--parsable2", "--format=Account,QOS,State,NNodes")
    row = f"lab|{'short' if 'short' in options else 'normal'}|COMPLETED|2\n"
    until(lambda: slurm.sandbox.run("sacct", "--job", job, *asked) == row)  # accounting hears of it a little later


def started(slurm: Cluster, wrap: str, *options: str) -> str:
    job = slurm.sandbox.run(
        "sbatch", "--parsable", *options, f"--output={slurm.output}/%j.out", "--open-mode=append", "--wrap", wrap
    ).strip()
    until(lambda: state(slurm, job) == "RUNNING")
    return job


def state(slurm: Cluster, job: str) -> str:
    return slurm.sandbox.run("squeue", "--noheader", "--states=all", "--format=%T", "--job", job).strip()


def until(reached: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


TELLS = """
trap 'echo USR2 $EPOCHSECONDS' USR2
trap 'echo TERM $EPOCHSECONDS' TERM
echo ready
while :; do sleep 0.1; done
"""


@pytest.mark.parametrize("signalled", [True, False])
def test_a_job_of_low_makes_way_for_one_of_high_and_is_signalled_if_that_is_set(
    slurm: Cluster, tmp_path: Path, signalled: bool
) -> None:
    (tmp_path / "tells").write_text(TELLS)
    slurm.sandbox.signal_preempted(signalled)
    job = started(
        slurm,
        f"srun bash {tmp_path}/tells",
        "--partition=low",
        "--exclusive",
        "--nodelist=node2",
        "--signal=USR2@30",
        "--time=5",
    )
    until(lambda: "ready" in slurm.said(job))
    high = started(slurm, "sleep 600", "--partition=high", "--exclusive", "--nodelist=node2")
    until(lambda: state(slurm, job) == "PENDING")  # it is put back into the queue
    times = dict(line.split() for line in slurm.said(job).splitlines() if line.startswith(("USR2", "TERM")))
    slurm.sandbox.run("scancel", job, high)
    assert set(times) == ({"USR2", "TERM"} if signalled else {"TERM"})
    if signalled:
        assert int(times["TERM"]) - int(times["USR2"]) >= PREEMPT_GRACE_S


def test_main_makes_way_for_nobody(slurm: Cluster) -> None:
    job = started(slurm, "sleep 600", "--exclusive", "--nodelist=node2")
    high = slurm.sandbox.run(
        "sbatch",
        "--parsable",
        "--partition=high",
        "--exclusive",
        "--nodelist=node2",
        "--output=/dev/null",
        "--wrap",
        "true",
    ).strip()
    time.sleep(3)
    assert (state(slurm, job), state(slurm, high)) == ("RUNNING", "PENDING")
    slurm.sandbox.run("scancel", job, high)


def test_a_node_without_power_takes_its_tasks_with_it_and_comes_back_idle(slurm: Cluster, tmp_path: Path) -> None:
    (tmp_path / "task").write_text("echo ready; while :; do sleep 0.1; done")
    job = started(slurm, f"srun bash {tmp_path}/task", "--nodelist=node2", "--requeue")
    until(lambda: "ready" in slurm.said(job))
    assert processes_that_say(tmp_path / "task") != []
    slurm.sandbox.power_off("node2")
    assert processes_that_say(tmp_path / "task") == []
    assert state(slurm, job) == "RUNNING", "nobody was told"
    slurm.sandbox.power_on("node2")
    until(lambda: state(slurm, job) == "PENDING")
    slurm.sandbox.run("scancel", job)
    until(
        lambda: slurm.sandbox.run("sinfo", "--noheader", "--nodes=node2", "--partition=main", "--format=%t") == "idle\n"
    )
    slurm.sandbox.run("srun", "--nodelist=node2", "true")


def test_a_frozen_node_is_given_up_and_its_tasks_wake_as_orphans(slurm: Cluster, tmp_path: Path) -> None:
    written = tmp_path / "written"
    lines = f"while :; do echo $SLURMD_NODENAME >>{written}; sleep 0.1; done"
    job = started(slurm, f"srun bash -c {lines!r}", "--nodelist=node3", "--requeue")
    until(lambda: written.exists() and "node3" in written.read_text())
    slurm.sandbox.suspend_node("node3")
    before = written.read_text()
    until(lambda: state(slurm, job) == "PENDING")
    assert written.read_text() == before, "it writes nothing while it is frozen"
    slurm.sandbox.run("scancel", job)
    slurm.sandbox.resume_node("node3")
    assert len(written.read_text()) > len(before), "and it was not dead"
    until(lambda: processes_that_say(written) == [])


def test_a_controller_that_is_killed_finds_its_jobs_again(slurm: Cluster) -> None:
    job = started(slurm, "sleep 600")
    waits = slurm.sandbox.run("sbatch", "--parsable", "--hold", "--wrap", "true").strip()
    slurm.sandbox.restart_controller()
    assert (state(slurm, job), state(slurm, waits)) == ("RUNNING", "PENDING")
    assert slurm.sandbox.run("sinfo", "--noheader", "--partition=main", "--format=%D %T").split()[-1] in (
        "idle",
        "mixed",
    )
    slurm.sandbox.run("scancel", job, waits)
    slurm.sandbox.run("srun", "--account=lab", "true")


def test_mend_brings_every_node_back(slurm: Cluster) -> None:
    slurm.sandbox.power_off("node1")
    slurm.sandbox.suspend_node("node2")
    slurm.sandbox.run("scontrol", "update", "NodeName=node3", "State=DOWN", "Reason=test")
    slurm.sandbox.restore()
    slurm.sandbox.run("srun", "--nodes=3", "true")


def processes_that_say(word: object) -> list[str]:
    """Process ids, as this machine sees them, of those that have ``word`` in their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(str(word)) in (process / "cmdline").read_bytes():
                found.append(process.name)
    return found
