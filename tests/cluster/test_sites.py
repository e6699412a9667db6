"""Clusters as they are elsewhere: at each, a run is submitted, trained to an interruption, resumed and cancelled.

``SITES`` is the table, a row a kind of cluster: what its commands answer, what stands in people's shells and on its
nodes. The answers were recorded, or are the words of the version's own source. Where srun begins, a task starts as
slurmstepd starts it, on this machine.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runyard.cli.main import main
from runyard.errors import ExitCode
from runyard.runs.events import StopEvent
from runyard.runs.journal import read_events
from runyard.runs.run import Run
from tests.support.fake_slurm import NUMBER, SINFO, FakeSlurm

NODE = {
    "SLURM_JOB_NODELIST": "node7", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": "1", "SLURMD_NODENAME": "node7",
}  # fmt: skip
IN_AN_HOUR = str(int(time.time()) + 3600)
# One task, as slurmstepd starts it, and the signal that precedes the end of the job once it has learned something.
TASK = """
until [ -f "$1" ] && [ -x "$1" ] || [ $# = 0 ]; do shift; done
export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=1 SLURM_STEP_NODELIST=node7
export SLURM_STEP_TASKS_PER_NODE=1
run=$(dirname "${@: -1}")
"$@" &
until grep -qs '"event": "epoch"' "$run/metrics.jsonl" || ! kill -0 $! 2>/dev/null; do sleep 0.1; done
kill -USR2 $!
wait $!
"""
HOSTNAMES = 'case "$1 $2" in "show hostnames") echo node7; exit ;; esac\n'


def version(number: str) -> dict[str, str]:
    """The programs of this version of SLURM."""
    return {"sbatch": f"case $1 in --version) echo slurm {number}; exit ;; esac\n",
            "scontrol": f'case "$1 $2" in "show config") echo "SLURM_VERSION = {number}"; exit ;; esac\n'}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """A kind of cluster.

    Attributes:
        first: What a program does before all else, by its name.
        instead: What a program does in place of all else.
        settings: What a person there sets beside the small run's settings.
        login: The environment on the login node, beside the usual.
        node: The same on the nodes.
        options: What the batch script asks sbatch for because of it.
        requeues: Whether SLURM takes a job back into the queue.
    """

    first: dict[str, str] = field(default_factory=dict)
    instead: dict[str, str] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    login: dict[str, str] = field(default_factory=dict)
    node: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    requeues: bool = True


PARTITION = "printf '%s|up|{limit}|1-infinite|{cpus}|{memory}|{gres}|h200,l40s\\n' {names}\n"
ELSEWHERE_RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
SITES = {
    "SLURM 20.11": Site(first=version("20.11.9")),
    "SLURM 22.05": Site(first=version("22.05.8")),
    "SLURM 23.02, which tells a job its end": Site(first=version("23.02.7"), node={"SLURM_JOB_END_TIME": IN_AN_HOUR}),
    "SLURM 24.05, which adds a line about the plugin": Site(
        first=version("24.05.3") | {"squeue": "echo 'squeue: warning: SPANK plugin x.so ignored' >&2\n"}
    ),
    "accounting": Site(instead={"sacct": f"echo '{NUMBER}|PENDING|0:0|0|Unknown||x'\n"}),
    "no accounting": Site(instead={"sacct": "echo 'SLURM accounting storage is disabled' >&2; exit 1\n"}),
    "wckeys": Site(
        first={"sbatch": '[ -z "$2" ] && case $1 in --*) ;; *) [ -n "$SBATCH_WCKEY" ] && ! grep -q wckey= "$1" || '
                         '{ echo "sbatch: error: Invalid wckey specification" >&2; exit 1; } ;; esac\n'},
        login={"SBATCH_WCKEY": "lab"},
    ),
    "no default partition": Site(
        instead={"sinfo": SINFO.replace("main*", "main")}, settings=("cluster.partition=short",),
        options=("--partition=short",),
    ),
    "a banner around sbatch's answer": Site(
        first={"sbatch": "echo '*** maintenance on Friday ***'; trap 'echo have a nice day' EXIT\n"}
    ),
    "a plugin that talks at every submission": Site(
        first={"sbatch": 'echo "sbatch: lua: Submitted job to partition short" >&2\n'}
    ),
    "SBATCH_EXPORT=NONE": Site(login={"SBATCH_EXPORT": "NONE"}, node={"SLURM_EXPORT_ENV": "NONE"}),
    "display variables of a person's own": Site(
        login={"SQUEUE_STATES": "PD", "SQUEUE_FORMAT": "%i", "SACCT_FORMAT": "jobid", "SLURM_TIME_FORMAT": "relative"},
        node={"SQUEUE_STATES": "PD", "SLURM_TIME_FORMAT": "relative"},
    ),
    "defaults for sbatch in a person's shell": Site(
        login={"SBATCH_PARTITION": "long", "SBATCH_ACCOUNT": "lab", "SBATCH_REQUEUE": "1", "SBATCH_NO_REQUEUE": "1"}
    ),
    "launcher's variables left in the shell": Site(login=ELSEWHERE_RANK, node=ELSEWHERE_RANK),
    "enroot's hook in every task": Site(
        node=ELSEWHERE_RANK | {"MASTER_ADDR": "node9", "MASTER_PORT": "29500"}
    ),
    "proxies": Site(
        login={"HTTPS_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"},
        node={"HTTPS_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"},
    ),
    "no locale": Site(login={"LC_ALL": "C", "PYTHONUTF8": "0"}, node={"LC_ALL": "C"}),
    "a numpy on PYTHONPATH": Site(login={"PYTHONPATH": "numpy"}, node={"PYTHONPATH": "numpy"}),
    "a busy controller": Site(first={"squeue": '[ -e "$here/asked" ] || { touch "$here/asked"; '
                                     'echo "squeue: error: slurm_load_jobs: Socket timed out" >&2; exit 1; }\n'}),
    "no requeueing": Site(
        first={"scontrol": 'case $1 in requeue) echo "Requested operation is presently disabled" >&2; exit 1 ;; '
                           "esac\n"}, requeues=False,
    ),
}  # fmt: skip


@pytest.fixture
def site(request: pytest.FixtureRequest, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    found: Site = SITES[request.param]
    (tmp_path / "numpy" / "numpy").mkdir(parents=True)
    (tmp_path / "numpy" / "numpy" / "__init__.py").write_text("raise ImportError('for another Python')\n")
    programs = {p.name: p.read_text().split("\n", 3)[3] for p in slurm.bin.iterdir()} | {"srun": TASK}
    programs["scontrol"] = HOSTNAMES + programs["scontrol"]
    for name, body in (programs | found.instead).items():
        slurm.program(name, found.first.get(name, "") + body)
    for name, value in found.login.items():
        monkeypatch.setenv(name, value.replace("numpy", str(tmp_path / "numpy")))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES, indirect=True)
def test_a_run_is_submitted_trained_resumed_and_cancelled(
    site: Site, slurm: FakeSlurm, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["experiment=null", *small, "epochs=1000", "cluster=slurm", f"cluster.python={sys.executable}"]
    assert main(["submit", *settings, *site.settings]) == 0, capsys.readouterr().err
    (run,) = (Run.open(path) for path in (tmp_path / "runs").iterdir() if not path.name.startswith("."))
    script = (slurm.folder / "script").read_text()
    assert [option for option in site.options if f"#SBATCH {option}\n" not in script] == []

    node = {name: value.replace("numpy", str(tmp_path / "numpy")) for name, value in site.node.items()}
    ended = slurm.run_script(**NODE, **node)
    learned = [
        (event.reason, event.user_error) for event in read_events(run.journal_path) if isinstance(event, StopEvent)
    ]
    assert learned == [("interrupted", False)], ended.stdout + ended.stderr
    assert (ended.returncode == ExitCode.REQUEUE) is site.requeues, ended.stderr
    assert ended.returncode != 0

    for command in ("status", "cancel", "resume", "status", "cancel"):
        assert main([command, str(run.path)]) == 0, (command, capsys.readouterr().err)
    assert len(slurm.submissions) == 2
    assert slurm.queue == []
