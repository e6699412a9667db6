"""Where nothing may be requeued, a chain of jobs takes one run to its end, on a real SLURM."""

from __future__ import annotations

import pytest

from runyard.runs.run import Run
from tests.support.slurm_runs import (
    RARE,
    STEPS_PER_EPOCH,
    Runs,
    rows,
    until,
    until_finished,
    until_learning,
    until_started,
)
from tests.support.trainings import final_state, same

pytestmark = pytest.mark.slow


def states(runs: Runs, number: str) -> dict[str, str]:
    """Of a chain's jobs, by accounting."""
    said = runs.sandbox.run("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={number}",
                            "--format=JobID,State")  # fmt: skip
    return dict(line.split("|") for line in said.splitlines())


def send(runs: Runs, signal: str, job: str) -> None:
    """Signal the tasks."""
    runs.sandbox.run("scancel", f"--signal={signal}", f"{job}.0")


def test_a_chain_goes_on_in_its_next_job_to_the_same_bits_and_what_is_left_of_it_ends_at_once(runs: Runs) -> None:
    settings = (*RARE, "epochs=60")
    run = runs.submit(*settings, "cluster.requeue=false", "cluster.chain=3")
    jobs = [job["id"] for job in Run.open(run.path).record["jobs"]]
    number = jobs[0].partition("_")[0]
    assert jobs == [f"{number}_0", f"{number}_1", f"{number}_2"]
    until_started(run, 1)
    whole = runs.submit(*settings, options=("--after", str(run.path)))  # for which all jobs of the chain must end well
    send(runs, "USR2", jobs[0])  # as before its time limit
    until_finished(run)
    first, second = rows(run, "start")
    assert (first["job_id"], second["job_id"]) == (jobs[0], jobs[1])
    assert 0 < second["step"] < 60 * STEPS_PER_EPOCH, "it was to be stopped on its way"
    assert [(row["cause"], row["step"]) for row in rows(run, "requeue")] == [("time limit", second["step"])]
    until(lambda: states(runs, number) == dict.fromkeys(jobs, "COMPLETED"), run)
    log = run.path / "slurm" / f"{jobs[2]}_0_log.out"
    assert log.read_text() == f"runyard: run {run.id} is finished: this job of its chain ends at once\n"
    assert len(rows(run, "start")) == 2
    until_finished(whole)
    assert same(final_state(whole), final_state(run))


def test_a_chain_whose_first_job_a_person_ends_does_not_go_on(runs: Runs) -> None:
    run = runs.submit(*RARE, "cluster.requeue=false", "cluster.chain=3", "epochs=100000")
    until_learning(run)
    jobs = [job["id"] for job in Run.open(run.path).record["jobs"]]
    assert "2 more jobs of its chain wait" in " ".join(runs.command("status", str(run.path)).stdout.split())
    refused = runs.resume(run)
    assert (refused.returncode, "is being written by" in refused.stderr) == (2, True)
    assert runs.command("cancel", str(run.path)).returncode == 0
    assert not set(jobs) & set(runs.queue())
    resumed = runs.resume(run)
    assert resumed.returncode == 0, resumed.stderr
    until_learning(run, start=2)
    first, *later = [job["id"] for job in Run.open(run.path).record["jobs"]][3:]
    send(runs, "TERM", first)
    until(lambda: not {first, *later} & set(runs.queue()), run)
    assert [row["job_id"] for row in rows(run, "start")] == [jobs[0], first]
    assert not any((run.path / "slurm" / f"{job}_0_log.out").exists() for job in later), "they were cancelled"
