"""What SLURM would refuse, or let wait for ever, is refused before it, by the setting's name and with its mend."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from runyard.cluster.launch.checks import slurm_checks
from runyard.cluster.launch.checks.check import CheckContext, run_check
from runyard.cluster.launch.checks.preflight import (
    data_prepared,
    planned_job,
    preflight,
    questions,
)
from runyard.cluster.launch.refusals import refusal
from runyard.cluster.slurm.cluster_info import Association, ClusterInfo, NodeGroup, parse_gres, parse_sinfo
from runyard.errors import UserError
from runyard.slurm_client import QueryError, SlurmRejected, error_line, run_query
from tests.support.fake_slurm import FakeSlurm
from tests.support.settings import SMALL, compose

GOLDEN = Path(__file__).parents[2] / "golden"
# as sinfo prints kinds, sockets, several things and minima of unlike nodes
MIXED = """\
gpu*|up|2-00:00:00|1-4|8|64+|512000+|gpu:a100:4(S:0-1)|a100,nvlink
gpu*|up|2-00:00:00|1-4|2|128|2048000|gpu:h200:8(S:0,2),tmpdisk:no_consume:100G|h200,nvlink
cpu|up|12:00:00|1-infinite|40|48|192000|(null)|(null)
"""


@pytest.fixture
def site(slurm: FakeSlurm) -> FakeSlurm:
    """A login node of the cluster that tests/slurm starts, as its commands answered once."""
    for program, file in (("sinfo", "sinfo"), ("scontrol", "scontrol_config"), ("sacctmgr", "sacctmgr")):
        answers = f"cat {shlex.quote(str(GOLDEN / f'{file}-22.05.txt'))}"
        slurm.program(program, f'case $1 in ping) echo "Slurmctld(primary) at here is UP" ;; *) {answers} ;; esac')
    return slurm


def subject(*overrides: str, points: int = 1) -> CheckContext:
    config = compose("cluster=slurm", *SMALL, "cluster.timeout_min=10", "cluster.signal_delay_s=15", *overrides)
    tasks = config.cluster.tasks_per_node or config.cluster.gpus_per_node or 1
    return CheckContext(
        config, tasks, "runyard prepare", False, points, lambda: planned_job([config] * points).script()
    )


def refused(*overrides: str, points: int = 1) -> str:
    with pytest.raises(UserError) as error:
        preflight(subject(*overrides, points=points))
    assert str(error.value).isprintable()
    return str(error.value)


def test_sinfos_lines_become_partitions_and_kinds_of_nodes() -> None:
    found = parse_sinfo((GOLDEN / "sinfo-22.05.txt").read_text())
    assert {name: (p.is_up, p.default, p.limit_s, p.max_nodes, p.node_count) for name, p in found.items()} == {
        "main": (True, True, None, None, 3),
        "low": (True, False, None, None, 3),
        "high": (True, False, None, None, 3),
        "day": (True, False, 86_400, None, 1),
        "shut": (False, False, 1800, None, 1),
        "wee": (True, False, 1800, 1, 1),
    }
    assert found["wee"].nodes == (NodeGroup(1, 64, 256_000, {"gpu": {"": 2}}, frozenset({"h200", "fast"})),)


def test_kinds_of_gpus_and_unlike_nodes_are_told_apart() -> None:
    found = parse_sinfo(MIXED)
    a100, h200 = found["gpu"].nodes
    assert (a100.cpus, a100.gres, h200.gres) == (
        64,
        {"gpu": {"a100": 4}},
        {"gpu": {"h200": 8}, "tmpdisk": {"": 100 * 1024**3}},
    )
    assert found["cpu"].nodes[0] == NodeGroup(40, 48, 192_000, {}, frozenset())
    assert parse_gres("gpu:a100:2,gpu:h100:2,gpu:a100:1") == {"gpu": {"a100": 3, "h100": 2}}


def test_a_line_that_is_none_of_sinfos_is_named() -> None:
    with pytest.raises(QueryError, match="sinfo printed a line that cannot be read: Welcome"):
        parse_sinfo("Welcome to the cluster!\n")


def test_one_site_asks_each_command_once(site: FakeSlurm) -> None:
    found = ClusterInfo()
    assert (found.version, found.max_array_size, found.accounts_enforced) == ("22.05.8", 1001, True)
    assert found.associations == [
        Association("lab", "", frozenset({"normal", "short"})),
        Association("root", "", frozenset({"normal"})),
    ]
    assert sorted(call.split()[0] for call in site.calls()) == ["sacctmgr", "scontrol", "sinfo"]


def test_a_submission_that_fits_passes_every_check(site: FakeSlurm) -> None:
    asked = subject(
        "cluster.nodes=2",
        "cluster.gpus_per_node=2",
        "cluster.account=LAB",
        "cluster.qos=short",
        "cluster.partition='main,low'",
        "cluster.constraint='h200&fast'",
        "cluster.mem_gb=250",
    )
    preflight(asked)
    states = {check.name: check.state for check in (run_check(n, q, asked) for n, q in questions(asked))}
    assert states.pop("data") == "unknown", "the data may be prepared while the job waits"
    assert set(states.values()) == {"passed"}
    assert site.calls("sbatch") == ["sbatch --test-only"], "and nothing was submitted"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "partition=gup",
            "cluster.partition=gup: no partition gup here; partitions here: main, low, high, day, shut, wee",
        ),
        ("partition='main,hihg'", "no partition hihg here; did you mean high?"),
        (
            "partition=shut",
            "cluster.partition=shut: it is down, so the job would wait for ever; "
            "partitions that are up: main, low, high, day, wee",
        ),
        (
            "partition=wee cluster.timeout_min=60",
            "cluster.timeout_min=60: at most 30 min in partition wee; "
            "set cluster.timeout_min=30 (the run continues in another job after it), or cluster.partition=main",
        ),
        ("account=lap", "cluster.account=lap: not one of yours; did you mean lab? yours are lab, root"),
        ("qos=reserved", "cluster.qos=reserved: not one you may use; you may use normal, short"),
        ("account=root cluster.qos=short", "cluster.qos=short: not one you may use; you may use normal"),
        ("constraint=h20", "did you mean h200? features there: fast, h200"),
        ("constraint='h200|l40s'", "feature l40s"),
        ("gpus_per_node=4", "cluster.gpus_per_node=2 at most"),
        (
            "gres='gpu:a100:1' cluster.gpus_per_node=1",
            "has GPUs of the kind a100; GPUs there have no kind: cluster.gres=gpu:1",
        ),
        ("gres='fpga:1'", "cluster.gres=fpga:1: "),
        ("cpus_per_task=65", "cluster.cpus_per_task=64 at most"),
        ("tasks_per_node=2 cluster.cpus_per_task=40", "cluster.cpus_per_task=40: "),
        ("mem_gb=251", "cluster.mem_gb=250 at most"),
        ("nodes=4", "cluster.nodes=4: this cluster gives a job at most 3 with 1 CPU; set cluster.nodes=3"),
        ("nodes=2 cluster.partition=wee", "cluster.nodes=2: partition wee gives a job at most 1 with"),
        ("env_setup=[if]", "cluster.env_setup=[if]: bash cannot read the script ("),
        ("env_setup=['while true']", "bash cannot read the script ("),
    ],
)
def test_what_slurm_could_not_run_is_refused_by_its_setting(site: FakeSlurm, override: str, said: str) -> None:
    assert said in refused(*(f"cluster.{part}" for part in override.split(" cluster.")))
    assert site.submissions == []


def test_without_these_checks_sbatch_takes_what_would_wait_for_ever(
    site: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [("sbatch", slurm_checks.sbatch_accepts)]
    monkeypatch.setattr("runyard.cluster.launch.checks.preflight.SLURM_CHECKS", checks)
    preflight(subject("cluster.partition=shut"))


def test_no_more_gpus_are_asked_for_than_one_node_of_the_kind_has(site: FakeSlurm) -> None:
    site.program("sinfo", f"printf '%s' {shlex.quote(MIXED)}")
    preflight(subject("cluster.gres='gpu:h200:8'", "cluster.gpus_per_node=8"))
    preflight(subject("cluster.gpus_per_node=8", "cluster.constraint='a100|h200'"))
    assert "more than 4 a100; set" in refused("cluster.gres='gpu:a100:8'", "cluster.gpus_per_node=8")
    assert "has more than 4;" in refused("cluster.gpus_per_node=8", "cluster.constraint=a100")
    assert "no node of partition cpu has GPUs; take" in refused("cluster.partition=cpu", "cluster.gpus_per_node=1")
    assert "did you mean h200?" in refused("cluster.gres='gpu:h20:8'", "cluster.gpus_per_node=8")
    wish = "cluster.gres='gpu:a100:4'", "cluster.gpus_per_node=4", "cluster.cpus_per_task=32"
    assert "no node of this cluster has 4 a100 GPUs, 128 CPUs at once; there are nodes of 64 CPUs" in refused(*wish)
    assert "at most 2 with" in refused("cluster.nodes=4", "cluster.gpus_per_node=8")
    assert "has these features at once" in refused("cluster.constraint='a100&h200'")


@pytest.mark.parametrize("points", [1001, 1002])
def test_an_array_has_as_many_elements_as_slurm_can_number(site: FakeSlurm, points: int) -> None:
    asked = subject(points=points)
    if points == 1001:
        slurm_checks.array_size(asked)
        return
    with pytest.raises(UserError, match="a sweep of 1002 points: this SLURM's arrays hold at most 1001; submit"):
        slurm_checks.array_size(asked)


def test_an_account_bound_to_a_partition_is_valid_there_alone(site: FakeSlurm) -> None:
    site.program("sacctmgr", "echo 'lab|high|normal'")
    preflight(subject("cluster.account=lab", "cluster.partition=high"))
    said = refused("cluster.account=lab", "cluster.partition=low")
    assert said == "cluster.account=lab: not valid in cluster.partition=low; it is in high"


def test_who_has_no_account_is_refused_only_where_one_is_needed(site: FakeSlurm) -> None:
    site.program("sacctmgr", "")
    assert "accounting knows no account of yours; ask" in refused()
    site.program("scontrol", "echo 'AccountingStorageEnforce = none'")
    assert run_check("account", slurm_checks.account, subject()).state == "unknown"


@pytest.mark.parametrize("body", ["echo 'sacctmgr: error: no accounting' >&2; exit 1", "exec sleep 60"])
def test_an_accounting_that_does_not_answer_holds_up_no_submission(
    site: FakeSlurm, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    site.program("sacctmgr", body)
    monkeypatch.setattr("runyard.cluster.slurm.cluster_info.ACCOUNTS_TIMEOUT_S", 0.5)
    asked = subject("cluster.account=whose")
    preflight(asked)
    assert run_check("account", slurm_checks.account, asked).state == "unknown"


def test_without_sbatch_one_line_says_so(site: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"^no sbatch and no srun on this machine: .* cluster=local"):
        slurm_checks.slurm_responds(subject())


def test_a_controller_that_is_down_is_told_in_one_line(site: FakeSlurm) -> None:
    said = "slurm_load_partitions: Unable to contact slurm controller (connect failure)"
    site.program("sinfo", f"echo '{said}' >&2; exit 1")
    assert refused().startswith("SLURM does not answer (sinfo: Unable to contact slurm controller (connect failure));")


SAID = [  # as sbatch 22.05.8 said it
    (
        "sbatch: error: invalid partition specified: gup\nallocation failure: Invalid partition name specified",
        "cluster.partition=gup: sbatch refuses it (invalid partition specified: gup, Invalid partition name "
        "specified); ",
    ),
    ("allocation failure: Invalid account or account/partition combination specified", "cluster.account=lab"),
    ("allocation failure: Invalid qos specification", "cluster.qos=short cluster.account=lab: sbatch refuses it ("),
    (
        "sbatch: error: QOSMaxWallDurationPerJobLimit\nallocation failure: Job violates accounting/QOS policy (job "
        "submit limit, user's size and/or time limits)",
        "cluster.timeout_min=10 cluster.qos=short: ",
    ),
    ("allocation failure: Requested node configuration is not available", "cluster.nodes=1 cluster.nodelist=node9"),
    ("sbatch: error: Invalid generic resource (gres) specification", "cluster.gpus_per_node=0: sbatch refuses it ("),
    ("allocation failure: Invalid feature specification", "cluster.constraint='h200|l40s': sbatch refuses it ("),
    ("allocation failure: Invalid node name specified", "cluster.nodelist=node9: sbatch refuses it ("),
    ("sbatch: error: Invalid --mail-type specification", "cluster.mail_type=null: sbatch refuses it ("),
    ("sbatch: error: the plugin is cross with you", "sbatch refuses the job (the plugin is cross with you); "),
]


@pytest.mark.parametrize(("said", "told"), SAID)
def test_sbatchs_own_words_name_the_setting(said: str, told: str) -> None:
    c = dataclasses.replace(
        compose("cluster=slurm").cluster,
        partition="gup",
        account="lab",
        qos="short",
        constraint="h200|l40s",
        nodelist="node9",
        timeout_min=10,
    )
    assert str(refusal(c, error_line(said))).startswith(told)


def test_sbatch_is_asked_about_the_script_itself(site: FakeSlurm, tmp_path: Path) -> None:
    given = tmp_path / "given"
    site.program("sbatch", f"cat > {given}; echo 'sbatch: error: no, thanks' >&2; exit 1")
    asked = subject()
    with pytest.raises(UserError, match="no, thanks"):
        slurm_checks.sbatch_accepts(asked)
    assert asked.script is not None
    assert given.read_text() == asked.script()


def test_nodes_that_come_back_are_no_reason_to_refuse(site: FakeSlurm) -> None:
    site.program("sbatch", "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1")
    asked = subject()
    assert asked.cluster_info.partitions
    for states, state in (("drain|2 idle|1", "unknown"), ("idle*|1 mix|2", "unknown"), ("idle~|1 mix-|2", "failed")):
        site.program("sinfo", f"printf '%s\\n' {' '.join(map(shlex.quote, states.split()))}")
        assert run_check("sbatch", slurm_checks.sbatch_accepts, asked).state == state


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ("7|RUNNING", None),
        ("7|COMPLETED", None),
        ("7_0|RUNNING 7_1|PENDING", None),
        ("71|RUNNING", "--after 7: "),
        ("", "--after 7: "),
        ("7|FAILED", r"--after 7: job 7 has ended \(FAILED\), so the job would never start"),
        ("7_0|RUNNING 7_1|CANCELLED", r"job 7_1 has ended \(CANCELLED\)"),
    ],
)
def test_a_job_can_follow_one_that_may_yet_end_well(site: FakeSlurm, known: str, told: str | None) -> None:
    site.says("known", "".join(f"{job}|None|0:00|10:00|N/A||a\n" for job in known.split()))
    asked = dataclasses.replace(subject(), after="7")
    if told is None:
        preflight(asked)
        return
    with pytest.raises(UserError, match=told):
        preflight(asked)


@pytest.mark.parametrize(
    ("after", "known", "told"),
    [
        ("afterany:7", "7|FAILED", None),
        ("afterany:7", "7|COMPLETED", None),
        ("afterany:7", "", "SLURM knows no such job"),
        ("afternotok:7", "7|RUNNING", None),
        ("afternotok:7", "7|FAILED", None),
        ("afternotok:7", "7_0|COMPLETED 7_1|RUNNING", None),
        ("afternotok:7", "7|COMPLETED", "job 7 has ended well, so the job would never start"),
    ],
)
def test_a_job_can_follow_one_that_may_yet_end_or_fail(
    site: FakeSlurm, after: str, known: str, told: str | None
) -> None:
    site.says("known", "".join(f"{job}|None|0:00|10:00|N/A||a\n" for job in known.split()))
    asked = dataclasses.replace(subject(), after=after)
    if told is None:
        preflight(asked)
        return
    with pytest.raises(UserError, match=told):
        preflight(asked)


@pytest.mark.parametrize(("ended", "state"), [("COMPLETED", "passed"), ("FAILED", "failed")])
def test_how_a_job_ended_that_the_queue_forgot_is_asked_of_accounting(site: FakeSlurm, ended: str, state: str) -> None:
    site.program("sacct", f"echo '7|{ended}|0:0|5|2030-01-01T00:00:00|n1|a'")
    assert run_check("after", slurm_checks.dependency, dataclasses.replace(subject(), after="7")).state == state


def test_an_allocations_environment_does_not_speak_for_a_new_job(
    site: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.program("sbatch", "env | grep ^S; exit 1")
    for name in ("SLURM_JOB_ID", "SLURM_NNODES", "SINFO_FORMAT", "SLURM_CONF"):
        monkeypatch.setenv(name, "7")
    with pytest.raises(SlurmRejected) as error:
        run_query("sbatch")
    assert "SLURM_CONF=7" in str(error.value)
    assert not [n for n in ("SLURM_JOB_ID", "SLURM_NNODES", "SINFO_FORMAT") if n in str(error.value)]


def test_missing_data_is_a_failed_check_with_its_mend(tmp_path: Path) -> None:
    asked = dataclasses.replace(subject(f"data.root={tmp_path}"), needs_data=True)
    check = run_check("data", data_prepared, asked)
    assert (check.state, check.fix) == ("failed", "make it: runyard prepare")
    assert "no prepared data there" in check.result


def test_checks_are_told_as_plain_values(site: FakeSlurm) -> None:
    check = run_check("partition", slurm_checks.partition, subject("cluster.partition=gup"))
    assert json.loads(json.dumps(dataclasses.asdict(check))) == {
        "name": "partition",
        "state": "failed",
        "result": "cluster.partition=gup: no partition gup here",
        "fix": "partitions here: main, low, high, day, shut, wee",
    }
