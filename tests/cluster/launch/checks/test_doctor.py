"""`runyard doctor` shows what would keep a submission from working, with its mend, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runyard.cli.commands.doctor import checks_table
from runyard.cli.main import main
from runyard.cluster.launch.checks import doctor, storage
from runyard.cluster.launch.checks.check import Check, CheckContext, run_check
from runyard.cluster.launch.checks.node_job import NodeJob
from runyard.cluster.launch.checks.node_probe import OUTPUT_PREFIX, probe
from runyard.errors import UserError
from runyard.slurm_client import QueryError
from tests.support.fake_slurm import FakeSlurm
from tests.support.settings import PATIENCE_S, ROOT, SMALL, compose

HERE = {"node_seen": True, "server_ahead_s": 0.01}
NODE: dict[str, Any] = {  # a node on which all is well
    "host": "node1", "cpus": 8, "python": "3.11.7", "executable": "/env/bin/python", "errors": {}, "cuda": "13.0",
    "versions": dict.fromkeys(doctor.REPORTED_PACKAGES, "1.0"), "gpus": ["NVIDIA H200"], "data": None,
    "wandb": "", "stage": None,
    "shared_folder": {"seen": True, "error": None, "server_ahead_s": 0.0}, "tmpdir": None, "ahead_s": 0.2, "here": HERE,
}  # fmt: skip


def subject(*overrides: str) -> CheckContext:
    config = compose("cluster=slurm", *SMALL, "cluster.gpus_per_node=1", *overrides)
    return CheckContext(config, 1, "runyard prepare data=synthetic")


class Told(NodeJob):
    """A job whose facts are known."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self._outcome = NODE | facts  # type: ignore[misc]


def on_a_node(facts: dict[str, Any], *overrides: str) -> dict[str, Check]:
    asked = subject(*overrides)
    return {name: run_check(name, question, asked) for name, question in doctor.node_checks(Told(facts))}


def checks_of(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    code = main(["doctor", *argv, "--json"])
    said = capsys.readouterr()
    assert said.err == ""
    return code, {check["name"]: check for check in json.loads(said.out)}


@pytest.mark.slow
def test_this_machine_can_do_what_the_other_tests_do(small: list[str], tmp_path: Path) -> None:
    said = subprocess.run([sys.executable, "-m", "runyard", "doctor", *small, "--json"], cwd=ROOT, text=True,
                          capture_output=True)  # fmt: skip
    checks = {check["name"]: check for check in json.loads(said.stdout)}
    assert said.returncode == 0, said
    assert {name for name, check in checks.items() if check["state"] == "unknown"} <= {"quota"}
    assert "torch 2." in checks["environment"]["result"]
    assert "partition" not in checks
    assert list(tmp_path.iterdir()) == [], "and it left nothing"


def test_damaged_data_makes_the_exit_code_2_and_is_told_with_its_mend(
    small: list[str], data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = shutil.copytree(data_root, tmp_path / "data")
    image = next(copy.glob("*/train_images.npy"))
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    code, checks = checks_of([*small, f"data.root={copy}", "--no-job"], capsys)
    assert code == 2
    assert (checks["data"]["state"], checks["data hashes"]["state"]) == ("failed", "failed")
    assert "its sha256 is not that in the manifest" in checks["data hashes"]["result"]
    assert checks["data hashes"]["fix"] == "delete the folder and run: runyard prepare"
    assert "environment" not in checks, "--no-job"


def test_the_table_shows_each_mend_below_what_was_found() -> None:
    from rich.console import Console

    console = Console(width=60, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(checks_table([Check("a", "passed", "well", "none"), Check("b", "failed", "[x]=1: no", "set [x]=2")]))
    assert [line.split() for line in console.export_text().splitlines()] == [
        ["check", "found"],
        ["a", "ok", "well"],
        ["b", "failed", "[x]=1:", "no"],
        ["→", "set", "[x]=2"],
    ]


def test_a_wrong_setting_or_option_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["epohcs=1"], ["--wait-s", "0"], ["--wait-s", "nan"], ["cluster.account=x"]):
        assert main(["doctor", *argv]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_job_on_a_node_asks_slurm_for_little_of_what_the_run_asks(slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.program(
        "srun", f"echo a banner; echo; echo '{OUTPUT_PREFIX}{json.dumps({'time': time.time(), 'host': 'n1'})}'"
    )
    asked = subject("cluster.account=lab", "cluster.gres='gpu:a100:4'", "cluster.gpus_per_node=4", "cluster.mem_gb=64",
                    "cluster.cpus_per_task=8", "cluster.python=/env/py", "cluster.env_setup=[module load x]",
                    f"runs_dir={tmp_path}/runs", "cluster.nodes=4", "batch_size=16")  # fmt: skip
    facts = NodeJob(asked, 30).report()
    assert facts["host"] == "n1"
    assert abs(facts["ahead_s"]) < 5
    call = "\n".join(slurm.calls())
    for word in (
        "--nodes=1",
        "--ntasks=1",
        "--account=lab",
        "--gres=gpu:a100:1",
        "--mem=8G",
        "--cpus-per-task=8",
        "--time=2",
        "--immediate=30",
        "--job-name=runyard-doctor-",
        "module load x",
        "\nexec /env/py",
    ):
        assert word in call
    assert '"wandb": false' in call
    assert not list(tmp_path.glob(".runyard-doctor*"))


FAILURES = [
    ("srun: error: Unable to allocate resources: Requested nodes are busy", QueryError, "no node was free within 30 s"),
    (
        "srun: error: Unable to allocate resources: Invalid account or account/partition combination specified",
        UserError,
        "cluster.account=lab: sbatch refuses it (Unable to",
    ),
    ("bash: line 1: /env/py: No such file or directory", UserError, "the job ended with 1: bash: line 1: /env/py: No"),
]


@pytest.mark.parametrize(("said", "kind", "told"), FAILURES)
def test_why_the_job_on_a_node_told_nothing_is_told_once(
    slurm: FakeSlurm, tmp_path: Path, said: str, kind: type[Exception], told: str
) -> None:
    slurm.program("srun", f"echo '{said}' >&2; exit 1")
    node = NodeJob(subject("cluster.account=lab", f"runs_dir={tmp_path}"), 30)
    with pytest.raises(kind) as error:
        node.report()
    assert str(error.value).startswith(told)
    with pytest.raises(QueryError, match="the job on a node reported nothing"):
        node.report_or_unknown()
    assert len(slurm.calls("srun")) == 1


def test_an_interrupt_takes_the_job_from_the_queue(slurm: FakeSlurm, small: list[str], tmp_path: Path) -> None:
    slurm.program("srun", "exec sleep 60")
    command = [sys.executable, "-m", "runyard", "doctor", *small, "cluster=slurm"]
    asking = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE_S
    while not slurm.calls("srun"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    asking.send_signal(2)
    assert asking.wait(PATIENCE_S) == 130
    name = slurm.calls("srun")[0].partition("--job-name=")[2].split()[0]
    assert f"scancel --name={name}" in slurm.calls("scancel")
    assert not list(tmp_path.glob("**/.runyard-doctor*"))


def test_a_node_on_which_all_is_well_passes() -> None:
    assert {check.state for check in on_a_node({}).values()} == {"passed"}


@pytest.mark.parametrize(
    ("name", "facts", "overrides", "told"),
    [
        (
            "environment",
            {"errors": {"ffcv": "ImportError: libopencv.so", "cv2": "x"}},
            [],
            "ffcv cannot be imported on node1 by /env/bin/python: ImportError: libopencv.so (nor cv2)",
        ),
        ("GPUs", {"gpus": []}, [], "cluster.gpus_per_node=1: torch (for CUDA 13.0) sees no GPU on node1"),
        ("shared folders", {"shared_folder": None}, ["runs_dir=/x"], "runs_dir=/x: cannot be written here"),
        (
            "shared folders",
            {"here": {"node_seen": False, "server_ahead_s": 0}},
            [],
            "not the same folder on node1 (a file",
        ),
        (
            "shared folders",
            {"shared_folder": {"seen": False, "error": "Permission denied", "server_ahead_s": None}},
            [],
            "not the same folder on node1 (Permission denied)",
        ),
        (
            "shared folders",
            {"data": "/d: No such file or directory"},
            ["data.root=/d"],
            "data.root=/d: cannot be read on node1 (/d: No such",
        ),
        ("internet", {"wandb": "no answer"}, ["tracking=online"], "tracking.mode=online: on node1: no answer"),
        (
            "local disk",
            {"stage": {"path": "/l", "free_gb": 0, "error": "No space left"}},
            ["cluster.stage_data=/l"],
            "cluster.stage_data=/l: /l on node1 cannot be written (No space left)",
        ),
        ("clocks", {"ahead_s": -60.0}, [], "node1's clock is 60 s behind this machine's"),
        ("clocks", {"here": {"node_seen": True, "server_ahead_s": 9.0}}, [], "the file server's is 9 s ahead of"),
        (
            "clocks",
            {"shared_folder": {"seen": True, "error": None, "server_ahead_s": 7.0}},
            [],
            "the node sees it is 7 s ahead",
        ),
    ],
)
def test_what_is_wrong_on_a_node_is_told_with_its_mend(
    name: str, facts: dict[str, Any], overrides: list[str], told: str
) -> None:
    found = on_a_node(facts, *overrides)
    assert found[name].state == "failed"
    assert told in found[name].result
    assert found[name].fix
    assert {check.state for other, check in found.items() if other != name} == {"passed"}


def test_a_node_without_a_network_is_no_fault_where_the_run_can_do_without() -> None:
    assert "the run logs offline" in on_a_node({"wandb": "no answer"}, "tracking=auto")["internet"].result


@pytest.mark.slow
def test_the_probe_tells_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "login").touch()
    monkeypatch.setenv("MINE", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.invalid")
    monkeypatch.setenv("WANDB_API_KEY", "5ec7e7" * 6)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("SLURM_TMPDIR", "/nowhere")
    monkeypatch.setattr("runyard.cluster.launch.checks.node_probe.MODULES", ("numpy", "no_such_library"))
    request = {"shared_folder": str(tmp_path), "data": "/nowhere", "wandb": True, "stage": "$MINE"}
    facts = probe(request)
    assert (facts["shared_folder"]["seen"], facts["shared_folder"]["error"]) == (True, None)
    assert "(HTTPS_PROXY) does not answer" in facts["wandb"], "it is asked as the run would ask"
    assert facts["errors"] == {"no_such_library": "ModuleNotFoundError: No module named 'no_such_library'"}
    assert facts["data"] == "/nowhere: No such file or directory"
    assert (facts["stage"]["path"], facts["stage"]["error"]) == (str(tmp_path), None)
    assert facts["tmpdir"]["error"] == "No such file or directory"
    assert abs(facts["shared_folder"]["server_ahead_s"]) < 1
    json.dumps(facts)


MYQUOTA = """\
Filesystem   Environment   Backed up?   Allocation       Current Usage
Space        Variable      /Flushed?    Space / Files    Space(%) / Files(%)

/home        $HOME         Yes/No        50.0GB/30.0K      8.96GB(17.91%)/29700(99.00%)
/scratch     $SCRATCH      No/Yes         5.0TB/1.0M      811.09GB(15.84%)/2437(0.24%)
"""


def test_a_quota_that_is_used_up_is_told(slurm: FakeSlurm) -> None:
    slurm.program("myquota", f"cat <<'END'\n{MYQUOTA}END")
    with pytest.raises(UserError, match=r"^your quota is 99 % used \(files of /home\); delete some"):
        storage.quota(subject())
    slurm.program("myquota", f"cat <<'END'\n{MYQUOTA.replace('99.00', '9.00')}END")
    assert storage.quota(subject()) == "at most 18 % used (space of /home)"
    (slurm.bin / "myquota").unlink()
    with pytest.raises(QueryError, match="neither myquota nor lfs"):
        storage.quota(subject())


@pytest.mark.parametrize(
    ("said", "used"),
    [
        ("/scratch 900 0 1000 - 5 100 200 -", {"space of /scratch": 90.0, "files of /scratch": 5.0}),
        ("/a/very/long/path\n          1100* 1000 1200 6d 5 0 0 -", {"space of /a/very/long/path": 110.0}),
        ("", {}),
        ("no such user", {}),
    ],
)
def test_lustres_quota_is_read(said: str, used: dict[str, float]) -> None:
    assert storage.parse_lfs(said) == used


def test_old_files_on_a_scratch_disk_are_told_before_they_are_purged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SCRATCH", raising=False)
    old = tmp_path / "scratch" / "data" / "set" / "train.beton"
    old.parent.mkdir(parents=True)
    old.touch()
    os.symlink("/nowhere", old.parent / "link")
    asked = subject(f"data.root={tmp_path}/scratch/data", f"runs_dir={tmp_path}/runs")
    assert storage.purge_risk(asked) == "longest idle 0 days (data.root), purged after 60"
    idle = time.time() - 50 * 86_400
    os.utime(old, (idle, idle))
    with pytest.raises(UserError, match=r"beton was not read for 50 days, .* made again: runyard prepare data=syn"):
        storage.purge_risk(asked)
    moved = dataclasses.replace(asked, config=dataclasses.replace(asked.config, runs_dir=str(tmp_path)))
    (tmp_path / "scratch").rename(tmp_path / "kept")
    assert storage.purge_risk(moved) == "no folder is on a scratch disk, going by the names"
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    with pytest.raises(UserError, match="50 days"):
        storage.purge_risk(moved)


def test_a_disk_that_takes_no_more_files_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs("/")
    assert storage.free_inodes(subject()).startswith("runs_dir ")
    full = os.statvfs_result((*found[:5], 10_000, 3, 3, *found[8:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(UserError, match="its disk takes only 3 more files; delete some"):
        storage.free_inodes(subject())


@pytest.mark.parametrize(
    ("mode", "obstacle", "state", "told"),
    [
        ("none", "x", "passed", "not used"),
        ("offline", "x", "passed", "not asked"),
        ("auto", "no key", "passed", "offline for now (tracking=auto): no key"),
        ("online", "no key: log in", "failed", "tracking.mode=online: no key"),
        ("online", None, "passed", "a key, and http://127.0.0.1:1 answers directly"),
    ],
)
def test_wandb_is_asked_for_where_it_is_used(
    monkeypatch: pytest.MonkeyPatch, mode: str, obstacle: str | None, state: str, told: str
) -> None:
    monkeypatch.setattr("runyard.tracking.wandb.connection.connection_problem", lambda: obstacle)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    check = run_check("W&B", doctor.wandb_reachable, subject(f"tracking={mode}"))
    assert check.state == state
    assert told in check.result


def test_the_key_is_never_printed(
    small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "5ec7e7" * 6)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    code = main(["doctor", *small, "tracking=online", "--no-job"])
    said = capsys.readouterr()
    assert code == 2
    assert "127.0.0.1:1 does not answer" in " ".join(said.out.split())
    assert "5ec7e7" not in said.out + said.err
