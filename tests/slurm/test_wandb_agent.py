"""slurm/wandb_agent.sbatch on a real SLURM, with W&B's own agent: at SLURM's warning its run is saved and handed on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from runyard.runs import journal
from runyard.runs.run import Run
from tests.support.lab import Cluster
from tests.support.life import KEY
from tests.support.settings import PATIENCE_S, SMALL
from tests.support.wandb_server import ENTITY, ServedSweep, WandbServer

pytestmark = pytest.mark.slow
SETTINGS = [s for s in SMALL if not s.startswith(("tracking", "epochs", "optim.lr"))]


@pytest.fixture
def server(slurm: Cluster) -> Iterator[WandbServer]:
    """Whose address and key jobs inherit from whoever submits them."""
    served = WandbServer()
    before = dict(slurm.sandbox.environment)
    slurm.sandbox.environment |= {"WANDB_BASE_URL": served.url, "WANDB_API_KEY": KEY, "NETRC": "/nowhere/netrc"}
    yield served
    slurm.sandbox.environment.clear()
    slurm.sandbox.environment.update(before)
    served.close()


@pytest.fixture
def sweep(server: WandbServer, data_root: Path, tmp_path: Path) -> ServedSweep:
    command = [
        "slurm/python.sh",
        "-m",
        "runyard",
        "submit",
        "experiment=null",
        *SETTINGS,
        f"data.root={data_root}",
        f"runs_dir={tmp_path / 'runs'}",
        "tracking=online",
        "epochs=60",
        "cluster=local",
        "${args_no_hyphens}",
    ]
    server.sweeps["sweep0"] = ServedSweep("sweep0", yaml.safe_dump({"command": command}), [{"optim.lr": 0.03}])
    return server.sweeps["sweep0"]


def until(true: Callable[[], object], said: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"waited in vain:\n{said()}"
        time.sleep(0.1)


@pytest.mark.parametrize("how", ["time limit", "cancel"])
def test_its_run_is_saved_and_goes_on_by_a_later_agent_but_not_after_a_cancel(
    slurm: Cluster, server: WandbServer, sweep: ServedSweep, tmp_path: Path, how: str
) -> None:
    def said() -> str:
        return slurm.said(job)

    def rows(event: str) -> list[journal.Row]:
        return [row for path in journals() for row in journal.read_journal(path)[0] if row["event"] == event]

    def journals() -> list[Path]:
        return sorted((tmp_path / "runs").glob("[!.]*/metrics.jsonl"))

    work = f"--export=ALL,WANDB_DIR={tmp_path}"
    job = slurm.submit("wandb_agent.sbatch", f"{ENTITY}/sweeping/sweep0", nodes=1, tasks=2,
                       options=("--array=0-0", work, f"--output={slurm.output}/%A.out"))  # fmt: skip
    until(lambda: len(rows("epoch")) > 1, said)
    if how == "cancel":
        slurm.sandbox.run("scancel", "--full", "--signal=TERM", f"{job}_0")  # without the KILL two seconds later
        until(lambda: rows("stop"), said)
        until(lambda: server.runs["sweep0r0"].ends, said)
        assert (rows("stop")[-1]["reason"], rows("stop")[-1]["cause"]) == ("interrupted", "TERM")
        assert (server.runs["sweep0r0"].ends, server.runs["sweep0r0"].preempting) == ([255], 0)
        return
    sweep.waiting.append("sweep0r0")  # as W&B does with a run that was preempted: the next to ask gets it
    slurm.sandbox.run("scancel", "--batch", "--signal=USR2", f"{job}_0")
    until(lambda: [row["reason"] for row in rows("stop")] == ["interrupted", "finished"], said)
    (start, again) = rows("start")
    assert (start["launcher"], start["world_size"]) == ("submitit, local", 2)
    assert (again["restarts"], again["step"] > 0) == (1, True), "SLURM started the element anew, and it went on"
    (path,) = journals()
    assert Run.open(path.parent).wandb_id == "sweep0r0"
    assert list(server.runs) == ["sweep0r0"]
    until(lambda: server.runs["sweep0r0"].ends[-1:] == [0], said)
    assert server.runs["sweep0r0"].values("epoch")[:60] == list(range(1, 61))


def test_what_is_no_sweep_is_refused_in_one_line(slurm: Cluster) -> None:
    job = slurm.submit("wandb_agent.sbatch", "abcd1234", nodes=1, tasks=1)
    assert slurm.end(job) == ("FAILED", "2:0")
    assert slurm.said(job) == "wandb_agent.sbatch: abcd1234: expected ENTITY/PROJECT/SWEEP, as wandb sweep prints\n"
