"""Preflight and doctor on a real SLURM: what it would refuse is refused before it, and its queue stays as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runyard.cluster.slurm.cluster_info import ClusterInfo
from tests.support.lab import Cluster
from tests.support.settings import PATIENCE_S, ROOT, SMALL

pytestmark = pytest.mark.slow
PARTITIONS = (
    "day Nodes=node1 MaxTime=1-00:00:00",
    "shut Nodes=node1 State=DOWN",
    "wee Nodes=node2 MaxTime=30 MaxNodes=1",
)


@pytest.fixture(scope="module")
def site(slurm: Cluster) -> Iterator[Cluster]:
    """The cluster with three more partitions and nodes of two features."""
    for partition in PARTITIONS:
        slurm.sandbox.run("scontrol", "create", *f"PartitionName={partition}".split())
    slurm.sandbox.run(
        "scontrol", "update", "NodeName=node[1-2]", "AvailableFeatures=h200,fast", "ActiveFeatures=h200,fast"
    )
    yield slurm
    slurm.sandbox.run("scontrol", "update", "NodeName=node[1-2]", "AvailableFeatures=", "ActiveFeatures=")
    for partition in PARTITIONS:
        slurm.sandbox.run("scontrol", "delete", f"PartitionName={partition.split()[0]}")


@pytest.fixture
def settings(data_root: Path, tmp_path: Path) -> list[str]:
    return [
        "experiment=null",
        *SMALL,
        f"data.root={data_root}",
        f"runs_dir={tmp_path / 'runs'}",
        "cluster=rehearsal",
        f"cluster.python={sys.executable}",
    ]


def runyard(site: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in site.sandbox.environment.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-m", "runyard", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE_S)


def queue(site: Cluster) -> str:
    return site.sandbox.run("squeue", "--noheader", "--states=all", "--format=%i %T")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "cluster.partition=gup",
            "cluster.partition=gup: no partition gup here; partitions here: main, low, high, day,",
        ),
        ("cluster.partition=shut", "cluster.partition=shut: it is down, so the job would wait for ever;"),
        ("cluster.partition=wee cluster.timeout_min=60", "cluster.timeout_min=60: at most 30 min in partition wee;"),
        ("cluster.account=lap", "cluster.account=lap: not one of yours; did you mean lab? "),
        ("cluster.qos=reserved", "cluster.qos=reserved: not one you may use; you may use "),
        (
            "cluster.qos=short cluster.timeout_min=30",
            "cluster.timeout_min=30 cluster.qos=short: sbatch refuses it (QOSMaxWallDurationPerJobLimit, Job violates",
        ),
        ("cluster.constraint=fats", "no node of this cluster has the feature fats; did you mean fast?"),
        ("cluster.gpus_per_node=4", "cluster.gpus_per_node=4: no node of this cluster has more than 2;"),
        ("cluster.gres='gpu:a100:2' cluster.gpus_per_node=2", "no node of this cluster has GPUs of the kind a100;"),
        ("cluster.nodes=4", "cluster.nodes=4: this cluster gives a job at most 3 with"),
        ("cluster.nodes=2 cluster.partition=wee", "cluster.nodes=2: partition wee gives a job at most 1 with"),
        ("cluster.mem_gb=900", "cluster.mem_gb=900: no node of this cluster has more than 250;"),
        ("cluster.nodelist=node9", "cluster.nodelist=node9: sbatch refuses it (Invalid node name specified);"),
        ("cluster.timeout_min=2 cluster.signal_delay_s=100", "set cluster.timeout_min=3 at least"),
        ('cluster.comment="a\nb"', r"cluster.comment='a\nb': expected text that is not empty and has no control"),
        ('cluster.comment="it\'s"', 'cluster.comment="it\'s": expected letters, digits, space and'),
    ],
)
def test_what_this_slurm_would_not_run_is_refused_in_one_line_and_nothing_is_queued(
    site: Cluster, settings: list[str], tmp_path: Path, override: str, said: str
) -> None:
    before = queue(site)
    done = runyard(site, "submit", *settings, *(f"cluster.{part}" for part in override[8:].split(" cluster.")))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done
    assert said in done.stderr
    assert queue(site) == before
    assert not (tmp_path / "runs").exists()


def test_a_job_is_not_to_follow_one_that_failed_or_never_was(site: Cluster, settings: list[str]) -> None:
    failed = site.sandbox.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=exit 1").strip()
    assert site.end(failed)[0] == "FAILED"
    before = queue(site)
    for number, said in ((failed, f"job {failed} has ended (FAILED), so the job would never start"),
                         ("99999", "SLURM knows no such job, so the job would start at once")):  # fmt: skip
        done = runyard(site, "submit", *settings, "--after", number)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert f"--after {number}: {said}" in done.stderr
    assert queue(site) == before


def test_sbatch_itself_would_have_taken_what_waits_for_ever(site: Cluster) -> None:
    """The control: why a partition and its limit are looked at."""
    for options in (["--partition=shut"], ["--partition=wee", "--time=60"]):
        site.sandbox.run("sbatch", "--test-only", *options, "--wrap=true")


def test_what_this_slurm_says_of_itself_is_read(site: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", site.sandbox.environment)
    found = ClusterInfo()
    assert list(found.partitions) == ["main", "low", "high", "day", "shut", "wee"]
    wee = found.partitions["wee"]
    assert (wee.is_up, wee.limit_s, wee.max_nodes, wee.node_count) == (True, 1800, 1, 1)
    assert (wee.nodes[0].cpus, wee.nodes[0].gres, wee.nodes[0].features) == (64, {"gpu": {"": 2}}, {"h200", "fast"})
    assert found.max_array_size == 1001
    assert "lab" in {row.account for row in found.associations}


def test_a_profile_of_this_slurm_gets_a_job_its_share_of_a_node(site: Cluster, data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "configs" / "cluster").mkdir(parents=True)

    def say(*words: str) -> str:
        env = {k: v for k, v in site.sandbox.environment.items() if k != "PYTHONPATH"}
        done = subprocess.run([sys.executable, "-m", "runyard", *words], cwd=tmp_path, env=env, capture_output=True,
                              text=True, timeout=PATIENCE_S)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    file = "configs/cluster/thrown_away.yaml"  # not into the checkout
    written = json.loads(say("profile", "new", "thrown_away", "--out", file, "--json"))["settings"]
    assert (written["account"], written["partition"], written["gpus_per_node"]) == ("lab", "main", 1)
    assert (written["cpus_per_task"], written["requeue"]) == (32, True)
    places = [f"data.root={data_root}", f"runs_dir={tmp_path / 'runs'}"]
    words = ["experiment=null", *SMALL, *places, "cluster=thrown_away"]
    checks = json.loads(say("doctor", *words, "--no-job", "--json"))
    assert [check for check in checks if check["state"] == "failed"] == []
    for gpus in (1, 2):
        script = json.loads(say("submit", *words, f"cluster.gpus_per_node={gpus}", "--dry-run", "--json"))["script"]
        (tmp_path / "script").write_text(script)
        job = site.sandbox.run("sbatch", "--parsable", "--hold", "--output=/dev/null", str(tmp_path / "script")).strip()
        shown = site.sandbox.run("scontrol", "show", "job", job)
        site.sandbox.run("scancel", job)
        assert f"cpu={32 * gpus}," in shown, shown
        assert "Account=lab" in shown
        assert f"MemPerTres=gres/gpu:{125 * 1024}" in shown or f"mem={125 * gpus}G" in shown, shown


@pytest.mark.parametrize("value", ["preemption=yes;requeue=true", "a b, c: d=/e@f+g_h"])
def test_a_comment_arrives_as_it_was_given(site: Cluster, settings: list[str], value: str) -> None:
    done = runyard(site, "submit", *settings, f'cluster.comment="{value}"', "--dry-run", "--json")
    script = json.loads(done.stdout)["script"].replace("#SBATCH --requeue", "#SBATCH --requeue\n#SBATCH --hold")
    job = subprocess.run(["sbatch", "--parsable", "--output=/dev/null", "--error=/dev/null"], input=script, text=True,
                         env=site.sandbox.environment, capture_output=True, check=True).stdout.strip()  # fmt: skip
    shown = site.sandbox.run("scontrol", "show", "job", job)
    site.sandbox.run("scancel", job)
    assert f"   Comment={value} \n" in shown or f"   Comment={value}\n" in shown


def test_doctor_looks_at_a_compute_node_and_leaves_nothing(site: Cluster, settings: list[str], tmp_path: Path) -> None:
    done = runyard(site, "doctor", *settings, "cluster.constraint=fast", "cluster.account=lab", "--json")
    checks: dict[str, Any] = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert {name for name, check in checks.items() if check["state"] != "passed"} <= {"quota"}
    assert checks["environment"]["result"].startswith("on node")
    assert "torch 2." in checks["environment"]["result"]
    assert checks["partition"]["result"] == "the cluster's own choice of main, low, high, day, wee"
    assert "runyard-doctor" not in site.sandbox.run("squeue", "--noheader", "--format=%j")
    assert list(tmp_path.iterdir()) == []


def test_doctor_tells_that_no_node_was_free_and_takes_its_job_back(site: Cluster, settings: list[str]) -> None:
    site.sandbox.run("scontrol", "update", "NodeName=node[1-3]", "State=DRAIN", "Reason=test")
    try:
        done = runyard(site, "doctor", *settings, "--wait-s=2", "--json")
    finally:
        site.sandbox.run("scontrol", "update", "NodeName=node[1-3]", "State=RESUME")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert (done.returncode, checks["environment"]["result"]) == (0, "no node was free within 2 s")
    assert checks["GPUs"]["state"] == "unknown"
    assert checks["sbatch"]["result"].startswith("3 nodes are down, drained or reserved"), "a submission would wait"
    assert "runyard-doctor" not in site.sandbox.run("squeue", "--noheader", "--format=%j")


def test_an_interrupted_doctor_leaves_no_job(site: Cluster, settings: list[str]) -> None:
    site.sandbox.run("scontrol", "update", "NodeName=node[1-3]", "State=DRAIN", "Reason=test")
    try:
        command = [sys.executable, "-m", "runyard", "doctor", *settings]
        asking = subprocess.Popen(command, cwd=ROOT, env=site.sandbox.environment, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while "runyard-doctor" not in site.sandbox.run("squeue", "--noheader", "--format=%j"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        asking.send_signal(2)
        assert asking.wait(PATIENCE_S) == 130
        assert "runyard-doctor" not in site.sandbox.run("squeue", "--noheader", "--states=PD,R", "--format=%j")
    finally:
        site.sandbox.run("scontrol", "update", "NodeName=node[1-3]", "State=RESUME")


@pytest.mark.parametrize("python", ["/nope", "/bin/false"])
def test_an_environment_that_nodes_do_not_have_fails(site: Cluster, settings: list[str], python: str) -> None:
    done = runyard(site, "doctor", *settings, f"cluster.python={python}", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert (done.returncode, checks["environment"]["state"]) == (2, "failed")
    assert checks["environment"]["result"].startswith("the job ended with 1")
    assert checks["environment"]["fix"].startswith("fix cluster.python")
