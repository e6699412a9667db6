"""No value of a cluster setting can add a line to a batch script, leave its own, or be one that nothing reads."""

from __future__ import annotations

import dataclasses
import random
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from submitit.slurm.slurm import _make_sbatch_string

from runyard.config.cluster_validation import check_cluster, gres_counts
from runyard.config.schema import ClusterConfig, config_to_dict, read_dataclass
from runyard.config.setting import settings_of
from runyard.errors import UserError
from tests.support.settings import compose

SLURM = compose("cluster=slurm").cluster
LOCAL = compose("cluster=local").cluster
KNOWN = settings_of(ClusterConfig)
IN_SCRIPT = [name for name, known in KNOWN.items() if known.pattern and known.sbatch != "no"] + ["mail_type"]
TRUE = {
    "account": ["torch_pr_123_general", "abc@v100", "a.b+c-d"],
    "partition": ["gpu", "a100,h100", "main-1"],
    "qos": ["normal", "qos_gpu-t3"],
    "constraint": ["h200|l40s", "[h200*1&fast*2]", "(a|b)&c", "gpu_mem:80"[:7]],
    "gres": ["gpu:0", "gpu:rtx8000:0", "tmpdisk:100G,gpu:0"],
    "comment": ["preemption=yes;requeue=true", "a b, c: d"],
    "exclude": ["node1", "node[1-3,7]", "gpu-a[01-10]b,x2"],
    "nodelist": ["node1", "r1i[0-3]n[1,2]"],
    "mail_user": ["ada", "ada.l+x@example.org"],
    "mail_type": ["END", "END,FAIL", "time_limit_90"],
    "python": ["/opt/env/bin/python", "slurm/python.sh", "python3.11"],
    "container_image": ["nvcr.io#nvidia/pytorch:25.01-py3", "/images/a.sqsh", "docker://ubuntu"],
    "stage_data": ["$SLURM_TMPDIR", "${TMPDIR}/x", "/tmp"],
}
SNIPPETS = [
    "\n",
    "\r",
    "\t",
    "\0",
    "\x7f",
    "\x85",
    "\u2028",
    "\u202e",
    "'",
    '"',
    "`",
    "$(touch x)",
    "\\",
    "#",
    "<",
    "\n#SBATCH --account=x",
    "; touch x",
    "&& touch x",
    "| touch x",
    "> x",
    " ",
    "é",
    "!",
    "~",
    "*",
    "?",
    "=",
    "{a,b}",
    "%j",
    "1",
    ",END",
]


def given(name: str, value: Any, base: ClusterConfig = SLURM) -> ClusterConfig:
    more = {"mail_type": "END"} if name == "mail_user" else {}
    return dataclasses.replace(base, **{**more, name: value})


def accepted(cluster: ClusterConfig) -> bool:
    try:
        check_cluster(read_dataclass(ClusterConfig, config_to_dict(cluster), "cluster."))
    except UserError as error:
        return not (str(error).startswith("cluster.") and str(error).isprintable())
    return True


def hostile(name: str, chance: random.Random) -> str:
    """A true value with something put somewhere into it, or characters at random."""
    if chance.random() < 0.3:
        return "".join(chr(chance.choice([chance.randrange(128), chance.randrange(0x3000)])) for _ in range(6))
    value, piece = chance.choice(TRUE[name]), chance.choice(SNIPPETS)
    at = chance.choice([0, len(value), chance.randrange(len(value) + 1)])
    return value[:at] + piece + value[at:]


def script(name: str, value: str) -> list[str]:
    return str(_make_sbatch_string("true", Path("/runs/x"), **{name: value})).split("\n")


def test_every_setting_that_reaches_a_script_has_a_pattern() -> None:
    texts = {f.name for f in dataclasses.fields(ClusterConfig) if "str" in str(f.type)}
    assert texts - {"name", "launcher", "env_setup", "extra"} == set(TRUE)
    assert {name for name, known in KNOWN.items() if known.pattern} == {*TRUE} - {"mail_type"}


def test_every_setting_of_slurm_alone_is_in_the_table_of_what_this_machine_refuses() -> None:
    assert {name for name, known in KNOWN.items() if known.slurm_only} == {*LOCALLY_IGNORED, "mail_user"}


@pytest.mark.parametrize("name", TRUE)
def test_true_values_pass(name: str) -> None:
    assert [v for v in TRUE[name] if not accepted(given(name, v))] == []


@pytest.mark.parametrize("name", TRUE)
def test_no_value_with_a_quote_a_control_character_or_another_line_passes(name: str) -> None:
    chance = random.Random(name)
    passed = [v for v in (hostile(name, chance) for _ in range(3000)) if accepted(given(name, v))]
    assert passed, "the control: some changed values are still good ones"
    never = set("'\"`\\#!<>%?~") | (set() if name == "stage_data" else set("${}"))
    never -= set("#") if name == "container_image" else set()  # within a word it begins no comment
    assert [v for v in passed if not v.isascii() or not v.isprintable() or set(v) & never] == []


@pytest.mark.parametrize("name", IN_SCRIPT)
def test_what_passes_stays_one_word_of_its_own_line_for_submitit_and_for_bash(name: str) -> None:
    chance = random.Random(name)
    values = {*TRUE[name], *(hostile(name, chance) for _ in range(2000))}
    values = {v for v in values if accepted(given(name, v))}
    plain = script(name, "x")
    wanted, found = [], []
    for value in sorted(values):
        lines = script(name, value)
        (mine,) = [n for n, line in enumerate(lines) if line != plain[n]]
        assert len(lines) == len(plain)
        option = lines[mine].removeprefix("#SBATCH ")
        assert shlex.split(option, comments=True) == [f"--{name.replace('_', '-')}={value}"]
        wanted.append(f"--{name.replace('_', '-')}={value}")
        found.append(option)
    said = subprocess.run(["bash", "-c", f"printf '%s\\n' {' '.join(found)}"], capture_output=True, text=True).stdout
    assert said.splitlines() == wanted


def test_without_the_patterns_a_value_does_leave_its_line() -> None:
    lines = script("comment", "a\n#SBATCH --account=x\ntouch y")
    assert len(lines) > len(script("comment", "a"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a\nb", "expected one line"),
        ("a\rb", "expected one line"),
        ("a\u2028b", "expected one line"),
        ("\x1b[2J", "expected one line"),
        (" ", "expected one line"),
        ("#SBATCH --account=x", "a comment"),
        (" # x", "a comment"),
        ("echo 'x", "no closing quot"),
        ('echo "x', "no closing quot"),
        ("module load \\", "no escaped char"),
        ("cat <<END", "goes on in the next line"),
    ],
)
def test_a_setup_line_that_is_no_whole_command_is_refused(line: str, said: str) -> None:
    with pytest.raises(UserError, match=r"^cluster\.env_setup\[1\]=.*" + said) as error:
        check_cluster(dataclasses.replace(SLURM, env_setup=["true", line]))
    assert str(error.value).isprintable()


def test_setup_lines_are_any_shell_command_else() -> None:
    lines = [
        "module load cuda/12.4",
        'export A="b c"',
        "source /ext3/env.sh && ulimit -n 4096",
        "cat <<< x | grep 'y z' > /dev/null",
    ]
    check_cluster(dataclasses.replace(SLURM, env_setup=lines))


LOCALLY_IGNORED: dict[str, Any] = {
    "account": "a",
    "partition": "p",
    "qos": "q",
    "constraint": "c",
    "gres": "gpu:1",
    "comment": "c",
    "exclude": "n1",
    "nodelist": "n1",
    "mail_type": "END",
    "mem_gb": 4,
    "cpus_per_task": 2,
    "python": "p",
    "extra": {"hold": True},
    "env_setup": ["true"],
    "container_image": "i",
    "stage_data": "/tmp",
    "requeue": True,
    "array_parallelism": 4,
    "chain": 5,
    "runs_per_task": 4,
}


@pytest.mark.parametrize("name", LOCALLY_IGNORED)
def test_what_this_machine_would_ignore_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"^cluster\.{name}=.*: only SLURM uses it, .* set cluster=slurm"):
        check_cluster(given(name, LOCALLY_IGNORED[name], LOCAL))
    check_cluster(LOCAL)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gres": "gpu:2"}, "asks for 2 GPUs on a node, and cluster.gpus_per_node=0"),
        ({"gres": "gpu:a100:2", "gpus_per_node": 4}, "asks for 2 GPUs on a node, and cluster.gpus_per_node=4"),
        ({"gres": "tmpdisk:5", "gpus_per_node": 4}, "asks for 0 GPUs"),
        ({"gpus_per_node": 4, "tasks_per_node": 6}, "cluster.tasks_per_node=6: does not divide among"),
        ({"timeout_min": 2, "signal_delay_s": 100}, "cluster.timeout_min=2: .* set cluster.timeout_min=3 at least"),
        (
            {"chain": 5, "requeue": True},
            "cluster.chain=5: takes the place of requeueing, and cluster.requeue=true; set",
        ),
        ({"runs_per_task": 4, "nodes": 2}, "cluster.runs_per_task=4: is for runs of one process, and cluster.nodes=2"),
        ({"runs_per_task": 4, "tasks_per_node": 2}, "and cluster.tasks_per_node=2; leave one of the two out"),
        ({"mail_user": "ada"}, "without cluster.mail_type no mail is sent"),
        ({"mail_type": "END,FALL"}, "SLURM knows no 'FALL'"),
        ({"mail_type": "FA\u0131L"}, "SLURM knows no 'FA"),  # whose capital letter is I
    ],
)
def test_settings_at_odds_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_cluster(dataclasses.replace(SLURM, **given))


@pytest.mark.parametrize(
    ("gres", "counts"),
    [
        ("gpu", {"gpu": ("", 1)}),
        ("gpu:2", {"gpu": ("", 2)}),
        ("gpu:a100", {"gpu": ("a100", 1)}),
        ("gpu:a100:4", {"gpu": ("a100", 4)}),
        ("gpu:3g.20gb:2", {"gpu": ("3g.20gb", 2)}),
        ("tmpdisk:1K,gpu:2", {"tmpdisk": ("", 1024), "gpu": ("", 2)}),
        ("gpu:a100:1,gpu:h100:2", {"gpu": ("h100", 3)}),
    ],
)
def test_gres_is_read_as_slurm_reads_it(gres: str, counts: dict[str, tuple[str, int]]) -> None:
    assert gres_counts(gres) == counts
