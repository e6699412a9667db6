"""``runyard profile new`` on kinds of sites, by their recorded answers: what it says, and what that composes to."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from runyard import installation
from runyard.cli.commands.profile import SHIPPED
from runyard.cli.main import main
from runyard.config.compose import compose, config_groups
from runyard.errors import UserError
from tests.support.fake_slurm import FakeSlurm
from tests.support.settings import ROOT

CONFIG = "SLURM_VERSION = {version}\nMaxArraySize = 1001\nAccountingStorageEnforce = none\nJobRequeue = {requeue}\n"


@dataclass(frozen=True)
class Site:
    """What SLURM's commands answer at one site, and what follows from it.

    Attributes:
        sinfo: Its lines.
        settings: What the profile sets, of the cluster's settings.
        said: Parts of the file's comments.
        associations: sacctmgr's lines of Account|Partition|QOS; None where it fails.
        partitions: scontrol's lines of the partitions.
        words: Options of the command.
    """

    sinfo: str
    settings: dict[str, object]
    said: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    associations: str | None = ""
    default_account: str = ""
    partitions: str = ""
    requeue: str = "1"
    version: str = "23.02.7"
    words: tuple[str, ...] = field(default_factory=tuple)


SITES = {
    "one partition of CPUs": Site(
        "compute*|up|2-00:00:00|1-infinite|20|64|256000|(null)|avx512\n",
        {"partition": "compute", "gpus_per_node": 0, "gres": None, "cpus_per_task": 8, "mem_gb": 31, "extra": {},
         "timeout_min": 60, "requeue": True, "account": "lab"},
        said=("SLURM 20.11.9", "no GPU in partition compute", "the default: 20 nodes of 64 CPUs, 250 GB; 48 h"),
        associations="lab||normal\n", default_account="lab\n", version="20.11.9",
    ),
    "GPUs by kind, slices of them, and a partition for tests": Site(
        "cpu*|up|5-00:00:00|1-infinite|40|96|384000|(null)|(null)\n"
        "gpu|up|2-00:00:00|1-4|12|64|512000|gpu:h100:4(S:0-1)|h100\n"
        "gpu|up|2-00:00:00|1-4|2|64|512000|gpu:a100:2,gpu:1g.10gb:14|a100\n"
        "debug|up|30:00|1-1|1|64|512000|gpu:h100:4(S:0-1)|h100\n",
        {"partition": "gpu", "gpus_per_node": 1, "gres": "gpu:h100:1", "cpus_per_task": 16, "mem_gb": None,
         "extra": {"mem-per-gpu": "125G"}, "timeout_min": 60, "requeue": True, "account": "vision"},
        said=("nodes have gpu:1g.10gb:14, gpu:a100:2, gpu:h100:4", "or cpu: 40 nodes of 96 CPUs, 375 GB; 120 h",
              "sinfo: 48 h in partition gpu", "null for the default: long, normal",
              "or debug: 1 node of 64 CPUs, 500 GB, 4 gpu h100, at most 1 a job; 30 min",
              "sacctmgr: your default; also course", "constraint may name: a100, h100"),
        associations="course|cpu|normal\ncourse||normal\nvision||normal,long\n", default_account="vision\n",
        words=("--partition", "gpu"),
    ),
    "slices alone": Site(
        "mig*|up|1-00:00:00|1-infinite|2|56|224000|gpu:1g.10gb:7|(null)\n",
        {"partition": "mig", "gpus_per_node": 1, "gres": "gpu:1g.10gb:1", "cpus_per_task": 8,
         "extra": {"mem-per-gpu": "31G"}},
        said=("one a job, as NCCL does not join slices",),
    ),
    "the default partition has no GPU": Site(
        "cpu*|up|infinite|1-infinite|40|4|16000|(null)|(null)\nv100|up|12:00:00|1-infinite|4|40|180000|gpu:2|(null)\n",
        {"partition": "cpu", "gpus_per_node": 0, "cpus_per_task": 4, "mem_gb": 15},
        notes=("partition cpu has no GPU; for one: --partition v100",),
    ),
    "GPUs without a kind": Site(
        "cpu*|up|infinite|1-infinite|40|4|16000|(null)|(null)\nv100|up|20:00|1-infinite|4|40|180000|gpu:2|v100\n",
        {"partition": "v100", "gpus_per_node": 1, "gres": None, "cpus_per_task": 20, "timeout_min": 20,
         "extra": {"mem-per-gpu": "87G"}},
        words=("--partition=v100",),
    ),
    "no accounting": Site(
        "main*|up|infinite|1-infinite|100|128|2000000|gpu:h200:8|h200\n",
        {"partition": "main", "account": None, "gres": "gpu:h200:1", "cpus_per_task": 16, "timeout_min": 60,
         "extra": {"mem-per-gpu": "244G"}},
        said=("sacctmgr says nothing of your accounts (accounting storage is disabled)",), associations=None,
    ),
    "no default partition, the first is down": Site(
        "old|down|infinite|1-infinite|1|8|32000|gpu:k80:2|(null)\nbatch|up|infinite|1-infinite|9|8|32000|(null)|(null)\n"
        "a40|up|1-00:00:00|1-2|4|32|256000|gpu:a40:4|(null)\n",
        {"partition": "a40", "gres": "gpu:a40:1", "cpus_per_task": 8, "extra": {"mem-per-gpu": "62G"}},
        said=("no default here", "or old: 1 node of 8 CPUs, 31 GB, 2 gpu k80; no limit; down"),
        notes=("sinfo: no default partition; a40 is the first with GPUs",),
    ),
    "uneven nodes": Site(
        "gpu*|up|infinite|1-infinite|2|128|1024000|gpu:a100:8|(null)\n"
        "gpu*|up|infinite|1-infinite|6|36|192000|gpu:a100:4|(null)\ngpu*|up|infinite|1-infinite|1|16|64000|gpu:t4:4|(null)\n",
        {"partition": "gpu", "gres": "gpu:a100:1", "cpus_per_task": 9, "extra": {"mem-per-gpu": "46G"}},
        said=("36 to 128 CPUs for 4 to 8 GPUs",),
    ),
    "whole nodes, no requeue, an account for each partition": Site(
        "booster*|up|1-00:00:00|1-infinite|900|48|512000|gpu:a100:4|(null)\n",
        {"partition": "booster", "account": "2024_07", "gpus_per_node": 4, "gres": "gpu:a100:4", "cpus_per_task": 10,
         "extra": {"mem": "0"}, "timeout_min": 1440, "requeue": False},
        said=("a job has its nodes to itself", "at most 40 a job (MaxCPUsPerNode)", "JobRequeue=0", "your only one"),
        notes=("JobRequeue=0 here",),
        associations="cpuproj|cluster|normal\n2024_07|booster|normal\n", default_account="cpuproj\n", requeue="0",
        partitions="PartitionName=booster AllowGroups=ALL MaxCPUsPerNode=40 OverSubscribe=EXCLUSIVE TRES=cpu=9,mem=1\n",
    ),
}  # fmt: skip


def answering(slurm: FakeSlurm, site: Site) -> None:
    """Have SLURM's commands answer as at ``site``."""
    answers = {"lines": site.sinfo, "partitions": site.partitions, "default": site.default_account,
               "associations": site.associations or "",
               "config": CONFIG.format(version=site.version, requeue=site.requeue)}  # fmt: skip
    for name, text in answers.items():
        slurm.says(name, text)
    slurm.program("sinfo", 'cat "$here/lines"\n')
    slurm.program("scontrol", 'case "$*" in ping) echo is UP ;; "show config") cat "$here/config" ;;\n'
                  '*"show partition") cat "$here/partitions" ;; esac\n')  # fmt: skip
    fails = "echo 'sacctmgr: error: accounting storage is disabled' >&2; exit 1\n"
    asked = 'case "$*" in *"show user"*) cat "$here/default" ;; *) cat "$here/associations" ;; esac\n'
    slurm.program("sacctmgr", fails if site.associations is None else asked)


@pytest.fixture
def elsewhere(slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder, as with an installed package."""
    folder = tmp_path / "it's mine"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(installation, "IN_CHECKOUT", False)
    answering(slurm, SITES["no accounting"])
    config_groups.cache_clear()
    yield folder
    config_groups.cache_clear()


@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
def test_the_profile_composes_to_what_the_site_says(
    site: Site, slurm: FakeSlurm, elsewhere: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    answering(slurm, site)
    assert main(["profile", "new", "mine", *site.words]) == 0, capsys.readouterr().err
    printed, file = capsys.readouterr().out, elsewhere / "configs" / "cluster" / "mine.yaml"
    text = file.read_text()
    assert printed.splitlines()[0] == f"wrote {file}"
    assert printed.splitlines()[-1] == "next: runyard doctor cluster=mine"
    assert [part for part in site.notes if part not in printed] == []
    assert [part for part in site.said if part not in text] == [], text

    made = compose(["cluster=mine"]).config.cluster
    assert made.name == "mine"
    assert {name: getattr(made, name) for name in site.settings} == site.settings, text
    assert main(["submit", *small, "cluster=mine", "--dry-run"]) == 0, capsys.readouterr().err
    assert f"#SBATCH --partition={made.partition}\n" in capsys.readouterr().out
    assert slurm.submissions == []


def test_with_more_gpus_cpus_and_memory_grow_with_them(
    slurm: FakeSlurm, elsewhere: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "new", "mine"]) == 0
    capsys.readouterr()
    for words, lines in (
        (["cluster.gpus_per_node=4"], ("--gres=gpu:h200:4", "--ntasks-per-node=4", "--mem-per-gpu=244G")),
        (["cluster.mem_gb=9", "cluster.extra.mem-per-gpu=null"], ("--mem=9GB",)),
    ):
        assert main(["submit", *small, "cluster=mine", "--dry-run", *words]) == 0, capsys.readouterr().err
        script = capsys.readouterr().out
        assert [line for line in lines if f"#SBATCH {line}\n" not in script] == [], script
    with pytest.raises(UserError, match=r"leave one out: cluster\.mem_gb=null, or cluster\.extra\.mem-per-gpu=null"):
        compose(["cluster=mine", "cluster.mem_gb=9"])


def test_json_is_all_that_is_said(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "new", "mine", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["file"] == str(elsewhere / "configs" / "cluster" / "mine.yaml")
    assert answer["settings"]["partition"] == "main"
    assert answer["next"] == "runyard doctor cluster=mine"
    assert len(answer["notes"]) == 1


def test_a_file_is_replaced_only_by_force(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = elsewhere / "configs" / "cluster" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("mine\n")
    assert main(["profile", "new", "mine"]) == 2
    assert "exists; give --force" in capsys.readouterr().err
    assert file.read_text() == "mine\n"
    assert main(["profile", "new", "mine", "--force"]) == 0
    assert yaml.safe_load(file.read_text())["partition"] == "main"


@pytest.mark.parametrize(("words", "said"), [
    (["slurm"], "runyard comes with a profile of that name"),
    (["nyu_torch", "--force"], "runyard comes with a profile of that name"),
    (["../x"], "not a plain name"), (["null"], "not a plain name"), (["7"], "not a plain name"),
    (["a.b"], "not a plain name"), ([""], "not a plain name"),
    (["mine", "--partition", "mian"], "--partition mian: no such partition here; partitions here: main"),
    (["mine", "--account", "a\nb"], "--account 'a\\nb': expected letters"),
])  # fmt: skip
def test_what_cannot_be_a_profile_is_one_line_and_writes_nothing(
    words: list[str], said: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "new", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert list(elsewhere.iterdir()) == []


def test_an_account_of_another_partition_is_refused(
    slurm: FakeSlurm, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(slurm, SITES["whole nodes, no requeue, an account for each partition"])
    assert main(["profile", "new", "mine", "--account", "cpuproj"]) == 2
    assert "--account cpuproj: not one of yours in partition booster; yours are 2024_07" in capsys.readouterr().err


def test_without_slurm_it_says_where_to_ask(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(elsewhere))
    assert main(["profile", "new", "mine"]) != 0
    assert "no sinfo on this machine: ask on the cluster's login node" in capsys.readouterr().err
    assert list(elsewhere.iterdir()) == []


def test_a_file_written_elsewhere_comes_with_the_way_to_where_it_is_found(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "new", "mine", "--out", "draft.yaml"]) == 0
    following = capsys.readouterr().out.splitlines()[-1].removeprefix("next: ")
    with pytest.raises(UserError, match="no such file under configs/cluster"):
        compose(["cluster=mine"])
    subprocess.run(following.rpartition(" && ")[0], shell=True, check=True)
    config_groups.cache_clear()
    assert compose(["cluster=mine"]).config.cluster.partition == "main"


def test_a_profile_of_the_working_folder_hides_none_that_runyard_has(elsewhere: Path) -> None:
    folder = elsewhere / "configs" / "cluster"
    folder.mkdir(parents=True)
    for name in ("slurm", "mine"):
        (folder / f"{name}.yaml").write_text(f"defaults: [slurm, _self_]\nname: {name}\naccount: 007\n")
    (elsewhere / "configs" / "train.yaml").write_text("not: ours\n")
    assert compose(["cluster=slurm"]).config.cluster.account is None
    assert compose(["cluster=mine"]).config.cluster.account == "007"


def test_the_names_that_runyard_comes_with_are_those_of_its_files() -> None:
    listed = subprocess.run(["git", "ls-files", "configs/cluster"], cwd=ROOT, capture_output=True, text=True).stdout
    assert not listed or sorted(SHIPPED) == sorted(Path(line).stem for line in listed.splitlines())
