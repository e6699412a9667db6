"""Row 17: whatever happens to a job on SLURM, its run goes on by itself to the bits of the undisturbed one."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
from collections.abc import Callable

from cluster.rehearsal import missing
from cluster.rehearse import tasks_of
from runyard.run import Run
from tests.slurm.conftest import cluster_of
from tests.slurm.runs import OFTEN, Runs, job, rows, until, until_finished, until_learning
from tests.torture.ground import Ground, Undisturbed, curves
from tests.torture.promise import Attacker, Promise, Unable, hold
from tests.training.conftest import final_state

NODES = 6
SIZES = ((2, 1), (2, 2), (3, 2))  # nodes, and tasks on each
DATA = ("data.samples=[384,60]", "batch_size=48", "epochs=10")  # which 2, 4 and 6 tasks divide


@functools.cache
def runs(ground: Ground) -> Runs:
    if reason := missing():
        raise Unable(reason)
    folder = ground.scratch()
    (folder / "runs").mkdir()
    return Runs(ground.within(cluster_of(NODES, folder)), ground.data_root, folder / "runs")


def sized(size: tuple[int, int]) -> tuple[str, ...]:
    return (*OFTEN, *DATA, f"cluster.nodes={size[0]}", f"cluster.tasks_per_node={size[1]}")


@functools.cache
def undisturbed(ground: Ground, size: tuple[int, int]) -> Undisturbed:
    run = runs(ground).submit(*sized(size))
    until_finished(run)
    return Undisturbed(run, 0.0, final_state(run), curves(run))


def kill_rank(r: Runs, run: Run, rng: random.Random) -> str:
    os.kill(rng.choice(list(tasks_of(run).values())), signal.SIGKILL)
    return "rank killed"


def kill_all(r: Runs, run: Run, rng: random.Random) -> str:
    for pid in tasks_of(run).values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return "all ranks killed"


def warn(r: Runs, run: Run, rng: random.Random) -> str:
    r.lab.run("scancel", "--signal=USR2", job(run))
    return "warned of the time limit"


def requeue(r: Runs, run: Run, rng: random.Random) -> str:
    r.lab.run("scontrol", "requeue", job(run))
    return "requeued by the administrator"


def cancel_and_resume(r: Runs, run: Run, rng: random.Random) -> str:
    hold(r.command("cancel", str(run.path)).returncode == 0, "cancel was refused")
    until(lambda: job(run) not in r.queue(), run)
    if not run.finished:
        done = r.resume(run)
        hold(done.returncode == 0, f"resume after cancel: {done.stderr}")
    return "cancelled and resumed"


def restart_controller(r: Runs, run: Run, rng: random.Random) -> str:
    r.lab.restart_controller()
    return "controller restarted"


def cut_power(r: Runs, run: Run, rng: random.Random) -> str:
    nodes = r.nodes(rows(run, "start")[-1])
    node = rng.choice(nodes)
    r.lab.power_off(node)
    before = len(rows(run, "start"))
    until(lambda: run.finished or len(rows(run, "start")) > before, run)
    r.lab.mend()
    return "node without power"


FAULTS: tuple[Callable[[Runs, Run, random.Random], str], ...] = (
    kill_rank, warn, requeue, cancel_and_resume, kill_all, restart_controller, cut_power, kill_rank,
)  # fmt: skip


def strike(a: Attacker, *settings: str) -> str:
    """One or two faults to a run, each while it learns."""
    r, size = runs(a.ground), SIZES[a.number % len(SIZES)]
    whole = undisturbed(a.ground, size)
    run = r.submit(*sized(size), *settings)
    struck = []
    for n in range(1 if settings else a.rng.choice((1, 2))):
        until(lambda n=n: run.finished or len(rows(run, "start")) > n, run)  # type: ignore[misc]
        if run.finished:
            break
        until_learning(run, start=len(rows(run, "start")))
        fault = kill_rank if settings else FAULTS[(a.number + n) % len(FAULTS)]
        if not run.finished:
            struck.append(fault(r, run, a.rng))
    if settings:
        until(lambda: job(run) not in r.queue(), run)
        hold(run.finished, "it ended for good, unfinished")
    until_finished(run)
    other = whole.differences(run)
    hold(not other, f"{size[0]} nodes of {size[1]}, {', '.join(struck)}: {other} differ")
    return ", ".join(struck) or "nothing in time"


def left_alone(a: Attacker) -> str:
    return strike(Attacker(a.ground, a.rng, 0), "cluster.requeue=false")


PROMISE = Promise(
    number=17,
    promise="Whatever happens to a job on SLURM, its run goes on by itself, or after `resume` where a person cancelled "
    "it, to the bits of the undisturbed run.",
    attack="On a throwaway SLURM of six nodes, runs of 2, 4 and 6 tasks on 2 and 3 nodes: ranks killed, one or all; "
    "warned, requeued, cancelled and resumed; the controller restarted; a node without power; up to two in a run.",
    at_least=60,
    short=0,
    strike=strike,
    control=left_alone,
    switched_off="nothing requeues the job",
)
