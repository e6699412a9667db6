"""Row 17: whatever happens to a job on SLURM, its run goes on by itself to the bits of the undisturbed one."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runyard.cluster.rehearsal.rehearse import tasks_of
from runyard.cluster.rehearsal.sandbox import missing_programs
from runyard.runs.run import Run
from runyard.training import checkpoint
from tests.support.lab import cluster_of
from tests.support.slurm_runs import OFTEN, Runs, job, rows, until, until_finished, until_learning
from tests.support.trainings import final_state
from tests.torture.corrupt import damage
from tests.torture.ground import ROOT, Ground, Undisturbed, curves
from tests.torture.promise import Attacker, Promise, Unable, hold

NODES = 6
SIZES = ((2, 1), (2, 2), (3, 2), (4, 1))  # nodes, and tasks on each
SIGNAL_DELAY_S = 45  # enough to save and to requeue on a busy machine
AWAY_S = 25.0  # SLURM's own commands wait for a controller for 18 s
DATA = ("data.samples=[384,60]", "batch_size=48", "epochs=10")  # which 2, 4 and 6 tasks divide


@functools.cache
def runs(ground: Ground) -> Runs:
    if reason := missing_programs():
        raise Unable(reason)
    folder = ground.scratch()
    (folder / "runs").mkdir()
    return Runs(ground.within(cluster_of(NODES, folder)), ground.data_root, folder / "runs")


def sized(size: tuple[int, int]) -> tuple[str, ...]:
    return (
        *OFTEN,
        *DATA,
        "cluster.partition=low",
        f"cluster.signal_delay_s={SIGNAL_DELAY_S}",
        f"cluster.nodes={size[0]}",
        f"cluster.tasks_per_node={size[1]}",
    )


@functools.cache
def undisturbed(ground: Ground, size: tuple[int, int]) -> Undisturbed:
    run = runs(ground).submit(*sized(size))
    until_finished(run)
    return Undisturbed(run, 0.0, final_state(run), curves(run))


def send(run: Run, number: signal.Signals) -> None:
    """To all its tasks; one that has ended hears nothing."""
    for pid in tasks_of(run).values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def held_still(run: Run) -> Iterator[list[int]]:
    """Its tasks, which cannot come to the run's end meanwhile."""
    send(run, signal.SIGSTOP)
    try:
        yield list(tasks_of(run).values())
    finally:
        send(run, signal.SIGCONT)


def until_started_again(run: Run, before: int) -> None:
    until(lambda: run.is_finished or len(rows(run, "start")) > before, run)


def processes(run: Run, word: bytes) -> list[int]:
    """The processes of its job, not its tasks, whose command line has ``word``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if word in words and f"SLURM_JOB_ID={job(run)}\0".encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def kill_rank(r: Runs, run: Run, rng: random.Random) -> str:
    with held_still(run) as tasks:
        for pid in rng.sample(tasks, min(1, len(tasks))):
            os.kill(pid, signal.SIGKILL)
    return "rank killed"


def kill_all(r: Runs, run: Run, rng: random.Random) -> str:
    send(run, signal.SIGKILL)
    return "all ranks killed"


def kill_srun(r: Runs, run: Run, rng: random.Random) -> str:
    with held_still(run):
        for pid in processes(run, b"submitit.core._submit"):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "srun":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    return "srun killed"


def damage_newest(r: Runs, run: Run, rng: random.Random) -> str:
    """The newest checkpoint, where there is an older one, and then a rank."""
    with held_still(run) as tasks:
        found = checkpoint.valid_checkpoints(run.checkpoints)
        if len(found) > 1:
            damage(found[-1].path, rng)
        for pid in tasks:
            os.kill(pid, signal.SIGKILL)
    return "newest checkpoint damaged, all ranks killed"


def warn(r: Runs, run: Run, rng: random.Random) -> str:
    r.sandbox.run("scancel", "--signal=USR2", job(run))
    return "warned of the time limit"


def lower_the_limit(r: Runs, run: Run, rng: random.Random) -> str:
    """To two minutes, which are waited for; then it is raised again."""
    before, began = len(rows(run, "start")), rows(run, "start")[-1]["t"]
    with held_still(run):
        r.sandbox.run("scontrol", "update", f"JobId={job(run)}", "TimeLimit=2")
        time.sleep(max(0, began + 120 - SIGNAL_DELAY_S - time.time()))
    until_started_again(run, before)
    r.sandbox.run("scontrol", "update", f"JobId={job(run)}", "TimeLimit=10", check=False)
    return "time limit lowered"


def requeue(r: Runs, run: Run, rng: random.Random) -> str:
    r.sandbox.run("scontrol", "requeue", job(run))
    return "requeued by the administrator"


def hold_and_release(r: Runs, run: Run, rng: random.Random) -> str:
    r.sandbox.run("scontrol", "requeuehold", job(run))
    until(lambda: not tasks_of(run), run)
    r.sandbox.run("scontrol", "release", job(run))
    return "requeued, held and released"


def suspend(r: Runs, run: Run, rng: random.Random) -> str:
    r.sandbox.run("scontrol", "suspend", job(run))
    time.sleep(rng.uniform(1, 10))
    r.sandbox.run("scontrol", "resume", job(run))
    return "suspended"


def preempt(r: Runs, run: Run, rng: random.Random) -> str:
    """With the signal that it asked for, or without."""
    before, nodes = len(rows(run, "start")), r.nodes(rows(run, "start")[-1])
    warned = rng.random() < 0.5

    def preempted() -> bool:
        shown = r.sandbox.run("scontrol", "show", "job", job(run))
        return "PreemptTime=2" in shown or "JobState=RUNNING" not in shown

    with held_still(run):
        r.sandbox.signal_preempted(warned)
        r.sandbox.run("sbatch", "--partition=high", f"--nodelist={','.join(nodes)}", "--exclusive",
                      "--output=/dev/null", "--wrap=sleep 2")  # fmt: skip
        until(preempted, run)
    until_started_again(run, before)
    return "preempted with its signal" if warned else "preempted without a word"


def cancel(r: Runs, run: Run) -> None:
    hold(r.command("cancel", str(run.path)).returncode in (0, 2), "cancel went wrong")
    until(lambda: job(run) not in r.queue(), run)


def resume(r: Runs, run: Run, after: str, **variables: str) -> None:
    if not run.is_finished:
        done = r.command("resume", str(run.path), cwd=ROOT, **variables)
        hold(done.returncode == 0, f"resume after {after}: {done.stderr}")


def cancel_and_resume(r: Runs, run: Run, rng: random.Random) -> str:
    """From a shell whose variables would hide the job from squeue."""
    cancel(r, run)
    name, value = rng.choice((("SQUEUE_STATES", "PD"), ("SQUEUE_PARTITION", "main"), ("SQUEUE_USERS", "nobody")))
    resume(r, run, "cancel", **{name: value})
    return "cancelled and resumed"


def resume_twice_at_once(r: Runs, run: Run, rng: random.Random) -> str:
    cancel(r, run)
    if not run.is_finished:
        with ThreadPoolExecutor() as pool:
            done = list(pool.map(lambda _: r.resume(run), range(rng.choice((2, 3)))))
        codes = [each.returncode for each in done]
        hold(sorted(codes) == [0, *[2] * (len(codes) - 1)], f"{len(codes)} at once ended with {codes}")
        queued = r.sandbox.run("squeue", "--noheader", "--format=%j").split()
        hold(queued.count(run.id) <= 1, f"{queued.count(run.id)} jobs of the run are on the queue")
    return "cancelled, and resumed by several at once"


def lose_code(r: Runs, run: Run, rng: random.Random) -> str:
    """Cancelled, and what it was submitted with is gone: the checkout, which is the same, has it."""
    cancel(r, run)
    if not run.is_finished:
        (run.path / "code").unlink()
    resume(r, run, "the loss of its code")
    return "cancelled, without its code, resumed"


def kill_batch_shell(r: Runs, run: Run, rng: random.Random) -> str:
    """It is saved, `status` says why, and a person resumes it."""
    with held_still(run):
        shells = processes(run, b"slurm_script")
        for pid in shells:
            os.kill(pid, signal.SIGKILL)
    until(lambda: job(run) not in r.queue(), run)
    if not run.is_finished:
        said = r.command("status", str(run.path)).stdout
        hold("its batch script was killed" in " ".join(said.split()), f"the batch shell was killed: {said[-300:]}")
        resume(r, run, "a killed batch shell")
    return "batch shell killed, resumed"


def restart_controller(r: Runs, run: Run, rng: random.Random) -> str:
    r.sandbox.restart_controller()
    return "controller restarted"


def die_without_controller(r: Runs, run: Run, rng: random.Random) -> str:
    """A rank dies while nobody answers its batch script."""
    with held_still(run) as tasks:
        r.sandbox.kill_controller()
        for pid in rng.sample(tasks, min(1, len(tasks))):
            os.kill(pid, signal.SIGKILL)
    time.sleep(AWAY_S)
    r.sandbox.start_controller()
    return "rank killed, controller away"


def cut_power(r: Runs, run: Run, rng: random.Random) -> str:
    node, before = rng.choice(r.nodes(rows(run, "start")[-1])), len(rows(run, "start"))
    r.sandbox.power_off(node)
    until_started_again(run, before)
    r.sandbox.restore()
    return "node without power"


def cut_link(r: Runs, run: Run, rng: random.Random) -> str:
    """Its tasks there are orphans, and wake while the run goes on elsewhere."""
    node, before = rng.choice(r.nodes(rows(run, "start")[-1])), len(rows(run, "start"))
    r.sandbox.suspend_node(node)
    until_started_again(run, before)
    r.sandbox.resume_node(node)
    r.sandbox.restore()
    return "node without link"


def drain(r: Runs, run: Run, rng: random.Random) -> str:
    """A node takes no more jobs, and a rank on it dies."""
    node, before = rng.choice(r.nodes(rows(run, "start")[-1])), len(rows(run, "start"))
    r.sandbox.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=broken")
    kill_rank(r, run, rng)
    until_started_again(run, before)
    r.sandbox.restore()
    return "node drained, rank killed"


def hang(r: Runs, run: Run, rng: random.Random) -> str:
    """A rank is held still for ever: the others notice, and it is ended."""
    before, tasks = len(rows(run, "start")), list(tasks_of(run).values())
    for pid in rng.sample(tasks, min(1, len(tasks))):
        os.kill(pid, signal.SIGSTOP)
    until_started_again(run, before)
    return "rank held still"


FAULTS: tuple[Callable[[Runs, Run, random.Random], str], ...] = (
    kill_rank, warn, kill_srun, cancel_and_resume, kill_all, restart_controller, cut_power, damage_newest,
    die_without_controller, preempt, hold_and_release, kill_batch_shell, lower_the_limit, suspend, cut_link,
    resume_twice_at_once, requeue, drain, lose_code, hang, preempt,
)  # fmt: skip


def strike(a: Attacker, *settings: str) -> str:
    """One or two faults to a run, each while it learns."""
    r, size = runs(a.ground), SIZES[a.number % len(SIZES)]
    whole = undisturbed(a.ground, size)
    run = r.submit(*sized(size), *settings)
    struck = []
    for n in range(1 if settings else a.rng.choice((1, 2))):
        until(lambda n=n: run.is_finished or len(rows(run, "start")) > n, run)  # type: ignore[misc]
        if run.is_finished:
            break
        until_learning(run, start=len(rows(run, "start")))
        fault = kill_rank if settings else FAULTS[(a.number + n) % len(FAULTS)]
        if not run.is_finished:
            struck.append(fault(r, run, a.rng))
    if settings:
        until(lambda: job(run) not in r.queue(), run)
        hold(run.is_finished, "it ended for good, unfinished")
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
    attack="On a temporary SLURM of six nodes, runs of 2, 4 and 6 tasks on 2 to 4 nodes: ranks killed, one or all, or "
    "held still; srun or the batch shell killed; the newest checkpoint damaged; warned, preempted, suspended, "
    "requeued, held and released, its limit lowered; cancelled and resumed, by several at once, without its code; the "
    "controller restarted, or away while a rank dies; a node without power, without link, drained; up to two in a run.",
    at_least=63,
    short=0,
    strike=strike,
    control=left_alone,
    switched_off="nothing requeues the job",
)
