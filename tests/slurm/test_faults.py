"""Whatever happens to a job, its run goes on by itself to the bits of the uninterrupted run, or says why not.

What happens is told in stories, one run each on nodes of its own, side by side: nearly all of each is waiting for
SLURM's timers. A test reads how one came out. The tests at the end have the cluster for themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from runyard.cluster.rehearsal.rehearse import tasks_of
from runyard.runs.run import Run
from tests.support.slurm_runs import (
    OFTEN,
    RARE,
    Runs,
    at_once,
    job,
    last_save,
    learned_step,
    rows,
    said,
    saved_step,
    until,
    until_finished,
    until_learning,
    until_started,
    went_on,
)
from tests.support.starts import train_starts
from tests.support.trainings import final_state, same

pytestmark = pytest.mark.slow
AWAY_S = float(os.environ.get("AWAY_S", 45))  # SLURM's own commands wait for a controller for 18 s, srun for 9 s
QUIET = "cluster.nodelist='node[1-2]'"


def time_limit(runs: Runs) -> tuple[Run, int, int]:
    """Its ranks are held still, so that however fast the machine it cannot be finished. SLURM's signal wakes them."""
    run = runs.submit(*RARE, QUIET, "cluster.timeout_min=2", "cluster.signal_delay_s=55")
    until_learning(run)
    signal_tasks(run, signal.SIGSTOP)
    learned, before = learned_step(run), len(rows(run, "requeue"))
    until_finished(run)
    return run, learned, before


def lost_link(runs: Runs) -> tuple[Run, Run]:
    """A node loses its link, the job goes on elsewhere, and the old task finds itself awake again."""
    run = runs.submit(*OFTEN, "cluster.nodes=1", "cluster.exclude='node[1-8]'")
    until_learning(run)
    node, orphan = rows(run, "start")[0]["nodelist"], tasks_of(run)[0]
    runs.sandbox.suspend_node(node)
    whole = runs.submit(*RARE, "cluster.nodes=1", "cluster.nodelist=node1")
    until_started(run, 2)
    runs.sandbox.resume_node(node)
    until_finished(run)
    until(lambda: not Path(f"/proc/{orphan}").exists(), run)
    until_finished(whole)
    return run, whole


def power_cuts(runs: Runs) -> tuple[Run, list[str], list[float]]:
    """First the node that runs the batch script, then the last one."""
    run = runs.submit(*OFTEN, "cluster.exclude='node[1-4,9-10]'")
    lost, at = [], []
    for start, which in ((1, 0), (2, -1)):
        until_learning(run, start=start)
        lost.append(runs.nodes(rows(run, "start")[-1])[which])
        at.append(time.time())
        runs.sandbox.power_off(lost[-1])
        until_started(run, start + 1)
    until_finished(run)
    return run, lost, at


DIES = """#!/bin/sh
case "$*" in *runyard.cluster.job.task*) kill -KILL $$ ;; esac
exec {python} "$@"
"""


def three_crashes(runs: Runs) -> Run:
    dies = runs.folder.with_name("dies")
    dies.write_text(DIES.format(python=sys.executable))
    dies.chmod(0o755)
    run = runs.submit("cluster.nodes=1", "cluster.nodelist=node1", f"cluster.python={dies}")
    until(lambda: rows(run, "stop"), run)
    until(lambda: job(run) not in runs.queue(), run)
    return run


def preemptions(runs: Runs) -> tuple[Run, int]:
    """One with the signal, one without: the run saves at stops alone."""
    run = runs.submit(*RARE, "cluster.partition=low", "cluster.nodelist='node[3-4]'")

    def preempted() -> bool:
        shown = runs.sandbox.run("scontrol", "show", "job", job(run))
        return "PreemptTime=2" in shown or "JobState=RUNNING" not in shown

    def preempt(start: int, *, warned: bool) -> int:
        until_learning(run, start=start)
        signal_tasks(run, signal.SIGSTOP)  # it cannot be over before SLURM looks at the queue
        learned = learned_step(run)
        runs.sandbox.signal_preempted(warned)
        runs.sandbox.run("sbatch", "--partition=high", "--nodelist=node[3-4]", "--exclusive", "--output=/dev/null",
                         "--wrap=sleep 2")  # fmt: skip
        until(preempted, run)
        signal_tasks(run, signal.SIGCONT)
        until_started(run, start + 1)
        return learned

    learned = preempt(1, warned=True)
    preempt(2, warned=False)
    until_finished(run)
    return run, learned


def administrator(runs: Runs) -> tuple[Run, float]:
    run = runs.submit(*OFTEN, QUIET)
    until_learning(run)
    at = time.time()
    runs.sandbox.run("scontrol", "requeue", job(run))
    until_finished(run)
    return run, at


def cancelled(runs: Runs) -> tuple[Run, int, int]:
    run = runs.submit(*RARE, QUIET)
    until_learning(run)
    runs.sandbox.run("scancel", job(run))
    until(lambda: rows(run, "stop"), run)
    until(lambda: job(run) not in runs.queue(), run)
    learned, saved = learned_step(run), saved_step(run)
    assert runs.resume(run).returncode == 0
    until_finished(run)
    return run, learned, saved


@pytest.fixture(scope="module")
def told(runs: Runs) -> Iterator[Callable[[Callable[[Runs], Any]], Any]]:
    with at_once(runs, time_limit, power_cuts, lost_link, three_crashes, preemptions, administrator, cancelled) as told:
        yield told
    runs.sandbox.restore()


def signal_tasks(run: Run, number: signal.Signals) -> None:
    for pid in tasks_of(run).values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def test_a_run_on_two_nodes_of_two_tasks_comes_to_its_end(told: Any, whole: Run, whole_of_four: Run) -> None:
    (start,) = rows(whole_of_four, "start")
    found = (start["launcher"], start["world_size"], start["nodes"], start["job_id"])
    assert found == ("SLURM", 4, 2, job(whole_of_four))
    assert (rows(whole, "start")[0]["world_size"], rows(whole, "requeue")) == (2, [])


def test_weights_that_differ_in_one_bit_are_told_apart(whole: Run) -> None:
    """The control of all that follows."""
    state = final_state(whole)
    assert same(state, final_state(whole))
    name, weights = next((k, v) for k, v in state["network"].items() if v.dtype == torch.float32 and v.ndim == 1)
    altered = weights.clone()
    altered[-1] = torch.nextafter(altered[-1], torch.tensor(torch.inf))
    assert not same(state, state | {"network": state["network"] | {name: altered}})


def test_before_the_time_limit_it_saves_every_step_and_goes_on(told: Any, whole: Run) -> None:
    run, learned, before = told(time_limit)
    went_on(run, whole, most_restarts=9)  # on a slow machine a limit may come before it is held, and after, too
    stop, requeues = rows(run, "stop")[before], rows(run, "requeue")
    assert (stop["reason"], stop["cause"], requeues[before]["cause"]) == ("interrupted", "USR2", "time limit")
    assert learned <= requeues[before]["step"]
    resumed = [start["step"] for start in rows(run, "start")[1:]]
    assert resumed == [requeue["step"] for requeue in requeues], "what it had learned it had saved"


def test_a_run_preempted_with_a_signal_loses_no_step(told: Any, whole: Run) -> None:
    run, learned = told(preemptions)
    went_on(run, whole, most_restarts=2)
    stop, start = rows(run, "stop")[0], rows(run, "start")[1]
    assert (stop["reason"], start["restarts"]) == ("interrupted", 1)
    assert learned <= start["step"] == last_save(run, stop["t"]), "what it had learned it had saved"


def test_a_run_preempted_without_a_word_goes_on_when_the_nodes_are_free_again(told: Any, whole: Run) -> None:
    run, _ = told(preemptions)
    start = went_on(run, whole, most_restarts=2)
    assert start["restarts"] == 2
    assert rows(run, "start")[1]["step"] <= start["step"], "no more is lost than was not saved"


def test_a_requeue_by_the_administrator_costs_what_was_not_saved(told: Any, whole: Run) -> None:
    run, at = told(administrator)
    assert last_save(run, at) <= went_on(run, whole)["step"]


@pytest.mark.parametrize("cut", [0, 1], ids=["first", "last"])
def test_a_node_without_power_is_replaced(told: Any, runs: Runs, whole: Run, cut: int) -> None:
    run, lost, at = told(power_cuts)
    went_on(run, whole, most_restarts=2)
    start = rows(run, "start")[cut + 1]
    assert lost[cut] not in runs.nodes(start)
    assert 0 < last_save(run, at[cut]) <= start["step"], "no more is lost than was not saved"


def test_an_orphan_that_wakes_writes_nothing(told: Any) -> None:
    """The old srun wakes too, and may end the step of its number, which is now the new job's: one more restart."""
    run, whole = told(lost_link)
    went_on(run, whole, most_restarts=2)
    events = [row["event"] for row in rows(run)]
    assert events[events.index("start", 1) :].count("stop") == 1, said(run)


def test_scancel_saves_and_the_run_goes_on_only_when_it_is_asked_to(told: Any, whole: Run) -> None:
    run, learned, saved = told(cancelled)
    assert (rows(run, "stop")[0]["cause"], rows(run, "requeue")) == ("TERM", [])
    assert 0 < learned <= saved == went_on(run, whole)["step"]


def test_three_restarts_without_progress_are_the_end(told: Any) -> None:
    run = told(three_crashes)
    assert [row["without_progress"] for row in rows(run, "requeue")] == [1, 2, 3]
    (stop,) = rows(run, "stop")
    assert stop["message"].startswith("given up: 3 restarts without progress at step 0")


def test_a_killed_rank_ends_the_job_and_it_goes_on_by_itself_from_what_was_saved(runs: Runs, whole: Run) -> None:
    """First rank 0, then another. How long that takes is measured by benchmarks/slurm.py."""
    run = runs.submit(*OFTEN, QUIET)
    for start, rank in ((1, 0), (2, 1)):
        until_learning(run, start=start)
        begun_at = rows(run, "start")[start - 1]["step"]
        until(lambda: last_save(run, time.time()) > begun_at, run)  # noqa: B023  else it made no progress
        killed_at = time.time()
        os.kill(tasks_of(run)[rank], signal.SIGKILL)
        until_learning(run, start=start + 1)
        requeue, again = rows(run, "requeue")[-1], rows(run, "start")[start]
        assert (requeue["cause"], requeue["without_progress"]) == ("crash", 1)
        assert 0 < last_save(run, killed_at) <= again["step"], "no more is lost than was not saved"
    went_on(run, whole, most_restarts=2)


def test_a_controller_that_is_killed_and_comes_back_changes_nothing(runs: Runs, whole: Run) -> None:
    """The ranks are held still meanwhile: the run cannot be over before the controller is back."""
    run = runs.submit(*RARE, QUIET)
    until_learning(run)
    signal_tasks(run, signal.SIGSTOP)
    runs.sandbox.restart_controller()
    signal_tasks(run, signal.SIGCONT)
    until_finished(run)
    assert len(rows(run, "start")) == 1
    assert same(final_state(whole), final_state(run))


def test_what_a_dead_rank_and_jobs_that_begin_ask_of_a_controller_that_is_away_they_ask_until_it_is_back(
    runs: Runs, whole: Run
) -> None:
    """Of two jobs that begin, one asks for its end first, and one knows that and comes as far as srun."""
    gate = runs.folder.with_name("gate")
    waits = f"until [ -e {gate} ]; do sleep 0.2; done"
    knows = "export SLURM_JOB_END_TIME=$(date -d 1hour +%s)"
    struck = runs.submit(*OFTEN, QUIET)
    asks, begins = (runs.submit("epochs=1", "cluster.nodes=1", f"cluster.env_setup={json.dumps(lines)}")
                    for lines in ([waits], [waits, knows]))  # fmt: skip
    until_learning(struck)
    here = ("squeue", "--noheader", "--states=R", f"--jobs={job(asks)},{job(begins)}")
    until(lambda: runs.sandbox.run(*here).count("\n") == 2, begins)
    signal_tasks(struck, signal.SIGSTOP)
    runs.sandbox.kill_controller()
    gate.touch()
    killed = tasks_of(struck)[1]
    signal_tasks(struck, signal.SIGCONT)
    os.kill(killed, signal.SIGKILL)
    time.sleep(AWAY_S)
    runs.sandbox.start_controller()
    went_on(struck, whole)
    assert [row["cause"] for row in rows(struck, "requeue")] == ["crash"]
    for run in (asks, begins):
        until_finished(run)
        assert (len(rows(run, "start")), rows(run, "requeue")) == (1, []), said(run)


def test_six_ranks_on_three_nodes_stopped_twice_end_with_the_bits_of_six_that_were_not(
    runs: Runs, tmp_path: Path
) -> None:
    """Once near the first step, once in mid-epoch; in fp32, where the order of a sum of six shows."""
    six = (*RARE, "precision=fp32", "batch_size=48", "epochs=40")
    whole = runs.create(*six)
    train_starts(tmp_path, 6, [(whole, None, None)])
    run = runs.submit(*six, "cluster.nodes=3", "cluster.tasks_per_node=2", "cluster.exclude='node[5-10]'")
    for start in (1, 2):
        until_started(run, start)
        runs.sandbox.run("scancel", "--signal=USR2", job(run))
        until_started(run, start + 1)
    until_finished(run)
    (first, *others) = rows(run, "start")
    assert (first["world_size"], first["nodes"], len(others)) == (6, 3, 2), said(run)
    assert 0 < others[0]["step"] < others[1]["step"] < 200, "it was to be stopped on its way"
    assert same(final_state(whole), final_state(run))
