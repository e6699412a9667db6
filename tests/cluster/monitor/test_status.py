"""How a run stands, from its directory and SLURM's answers: who is believed when, and in which words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runyard.cluster.monitor.run_status import run_status
from runyard.cluster.slurm.queue import SEPARATOR
from runyard.runs.journal import Journal
from runyard.runs.lease import Lease
from runyard.runs.summary import DEFERRED_EVENTS, RunSummary
from tests.support.fabricated import BEGAN, Folder, epoch, row, runs, start, stop

ON = "; continue with: runyard resume "


def said(run: Path) -> tuple[str, str]:
    """State and words, without the command to continue with."""
    now = run_status(RunSummary(run))
    return now.state, now.message.partition(ON)[0]


def test_the_journal_says_how_it_ended(folder: Folder) -> None:
    ends = [
        ("finished", "finished", stop(9, "finished")),
        ("interrupted", "stopped at step 50, saved (time limit)", stop(9, "interrupted", cause="time limit")),
        ("interrupted", "stopped at step 50, saved (cancelled)", stop(9, "interrupted", cause="TERM")),
        ("failed", "failed: given up: 3 restarts", stop(9, "failed", message="given up: 3 restarts")),
    ]
    for state, words, end in ends:
        assert said(folder.run(start(1), row("checkpoint", 8, step=50), end)) == (state, words)


def test_a_saved_checkpoint_that_is_gone_or_cut_short_is_said_where_its_step_is(folder: Folder) -> None:
    run = folder.run(start(1), row("checkpoint", 8, step=50), stop(9, "interrupted", cause="TERM"))
    (run / "checkpoints" / "step_00000050" / "state.pt").write_bytes(b"x")
    assert said(run)[1] == "stopped at step 50, saved, but step_00000050 is damaged (cancelled)"
    (run / "checkpoints" / "step_00000050").rename(run / "elsewhere")
    assert said(run)[1] == "stopped at step 50, saved, but step_00000050 is missing (cancelled)"


def test_a_run_whose_code_is_gone_is_not_advised_to_resume_as_it_is(folder: Folder) -> None:
    run = folder.run(start(1), stop(9, "interrupted", cause="TERM"))
    assert run_status(RunSummary(run)).message.endswith(f"; continue with: runyard resume {run.name}"), "the control"
    (run / "code").rmdir()
    hint = f"; its code is missing: runyard resume {run.name} says how to restore it"
    assert run_status(RunSummary(run)).message.endswith(hint)
    killed = folder.run(start(1))
    (killed / "code").rmdir()
    assert "its code is missing" in run_status(RunSummary(killed)).message


def test_slurm_says_what_waits_and_why(folder: Folder) -> None:
    run = folder.run()
    folder.queue("12|PENDING|Priority|0:00|9:00|N/A||@")
    assert said(run) == ("waiting", "waiting (Priority): jobs with higher priority come first")
    folder.queue(f"12|PENDING|Resources|0:00|9:00|{time.strftime('%Y-%m-%dT23:59:59', time.localtime(2e9))}||@")
    assert said(run)[1].endswith("; expected to start 2033-05-18 23:59")


def test_slurm_says_what_runs_where_and_for_how_long(folder: Folder) -> None:
    run = folder.run()
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 185))
    folder.queue(f"12|RUNNING|None|3:05|57:30|{now}|node[1-2]|@")
    assert said(run) == ("starting", "starting on node1,node2 for 3 min, 57 min left")
    folder.append(run, start(time.time() - 100 - BEGAN))
    assert said(run) == ("running", "running on node1,node2 for 3 min, 57 min left")
    folder.append(run, stop(time.time() - BEGAN, "interrupted", cause="USR2"))
    assert said(run)[0] == "stopping"


@pytest.mark.parametrize(
    ("rows", "accounted", "words"),
    [
        ([row("requeue", 9, cause="preemption", step=50)], [], "preempted, waiting to go on at step 50"),
        ([row("requeue", 9, cause="time limit", step=50)], [], "time limit reached, waiting to go on at step 50"),
        ([row("requeue", 9, cause="crash", step=0)], [], "crashed, waiting to go on from the beginning"),
        ([], ["12|NODE_FAIL|0:0|8|Unknown|node3|@", "12|PENDING|0:0|0|Unknown|None assigned|@"],
         "a node failed, waiting to go on at step 40"),
        ([stop(9, "interrupted", cause="TERM")], ["12|PREEMPTED|0:0|8|Unknown|node3|@", "12|PENDING|0:0|0||None|@"],
         "preempted, waiting to go on at step 40"),
        ([], [], "waiting to go on at step 40"),
    ],
)  # fmt: skip
def test_a_requeued_run_says_what_ended_it_and_where_it_goes_on(
    folder: Folder, rows: list[dict[str, Any]], accounted: list[str], words: str
) -> None:
    run = folder.run(start(1), row("checkpoint", 5, step=40), *rows)
    folder.queue("12|PENDING|BeginTime|0:00|9:00|N/A||@")
    folder.accounting(*accounted)
    assert said(run)[1].partition(" (BeginTime): ")[0] == words


@pytest.mark.parametrize(
    ("accounted", "state", "words"),
    [
        ("12|OUT_OF_MEMORY|0:125|9|Unknown|node1|@", "killed", "out of memory: ask for more (cluster.mem_gb)"),
        ("12|TIMEOUT|0:0|9|Unknown|node1|@", "killed", "time limit reached before it could save"),
        ("12|NODE_FAIL|0:0|9|Unknown|node1|@", "killed", "node failed, saved at step 40"),
        ("12|CANCELLED by 7|0:0|9|Unknown|node1|@", "cancelled", "cancelled (scancel), saved at step 40"),
        ("12|FAILED|1:0|9|Unknown|node1|@", "killed", "died without a word: its batch script ended: exit code 1"),
        ("12|FAILED|0:9|9|Unknown|node1|@", "killed",
         "died without a word: its batch script ended: killed by SIGKILL (signal 9)"),
        ("12|COMPLETED|0:0|9|Unknown|node1|somebody else's", "killed", "died without a word"),
        ("", "killed", "died without a word, saved at step 40"),
    ],
)  # fmt: skip
def test_a_job_that_vanished_is_said_to_have_and_how_to_go_on(
    folder: Folder, accounted: str, state: str, words: str
) -> None:
    run = folder.run(start(1), row("checkpoint", 5, step=40))
    folder.accounting(accounted)
    found = run_status(RunSummary(run))
    assert (found.state, found.message[: len(words)]) == (state, words)
    assert found.message.endswith(f"{ON}{run.name}")


def test_what_ends_while_slurm_is_asked_has_not_died(folder: Folder) -> None:
    run = folder.run(start(1), row("checkpoint", 5, step=40))
    end = json.dumps(stop(BEGAN + 9, "interrupted", cause="TERM"))
    folder.slurm.program("squeue", f"echo '{end}' >> {run}/metrics.jsonl")
    assert said(run) == ("interrupted", "stopped at step 40, saved (cancelled)")


def test_the_last_words_of_a_log_are_told(folder: Folder) -> None:
    run = folder.run(start(1))
    (run / "slurm" / "12_0_log.err").write_text("noise\nslurmstepd: error: killed\n")
    (run / "slurm" / "12_1_log.err").write_text("runyard: no room left\n")
    assert said(run)[1] == "died without a word: no room left"
    (run / "slurm" / "12_1_log.err").unlink()
    for words in ("python.sh: no Python at x\nsrun: launch/slurm: ends it\n", "python.sh: no Python at x\n\n"):
        (run / "slurm" / "12_0_log.err").write_text(words)
        assert said(run)[1] == "died without a word: python.sh: no Python at x"
    (run / "slurm" / "12_0_log.err").write_text("srun: error: Unable to create step\n")
    assert said(run)[1] == "died without a word: srun: error: Unable to create step"


def test_a_stop_before_the_newest_job_says_nothing_of_that_job(folder: Folder) -> None:
    stopped = start(1), row("checkpoint", 5, step=40), stop(9, "interrupted", cause="TERM")
    assert said(folder.run(*stopped, submitted=0))[0] == "interrupted"
    assert said(folder.run(*stopped, submitted=10))[0] == "killed"


def test_a_job_whose_dependency_failed_is_cancelled_for_that(folder: Folder) -> None:
    run = folder.run()
    folder.queue("12|CANCELLED|DependencyNeverSatisfied|0:00|UNLIMITED|N/A||@")
    folder.accounting("12|CANCELLED|0:0|0|None|None assigned|@")
    assert said(run) == ("cancelled", "cancelled: the job it was to follow failed while it waited")


def test_the_rank_that_all_others_wait_for_is_named(folder: Folder) -> None:
    slow = {"slowest_rank": 3, "slowest_node": "node2", "slowest_to_median": 1.8}
    now = time.time() - BEGAN
    run = folder.run(start(now - 100), epoch(now - 50, 1, 0.5, **slow))
    folder.queue("12|RUNNING|None|3:05|57:00|N/A|node[1-2]|@")
    assert said(run)[1].endswith("; rank 3 on node2 takes 1.8x the median rank's time")
    folder.append(run, epoch(now - 9, 2, 0.6, **slow | {"slowest_to_median": 1.2}))
    assert "median" not in said(run)[1]


def test_another_runs_job_of_the_same_number_is_not_taken_for_this_runs(folder: Folder) -> None:
    run = folder.run(start(1))
    job = f"12|RUNNING|None|3:05|57:00|N/A|node1|{run.name}"
    folder.queue(job + runs(run.with_name("another")))
    assert said(run)[0] == "killed"
    folder.queue(job)
    assert said(run)[0] == "starting", "the control"


def test_a_job_put_on_slurm_by_another_command_is_known_from_the_journal(folder: Folder) -> None:
    run = folder.run(start(1, job_id="77"), job=None)
    folder.queue("77|RUNNING|None|3:05|57:00|2026-09-21T00:00:00|node1|train")
    assert said(run)[0] == "running"


@pytest.mark.parametrize(("launcher", "state"), [("submitit, local", "interrupted"), ("SLURM", "stopping")])
def test_a_job_in_which_a_local_run_was_trained_may_be_another_runs_by_now(
    folder: Folder, launcher: str, state: str
) -> None:
    ended = stop(9, "interrupted", cause="USR2")
    run = folder.run(start(1, launcher=launcher), ended, job="99999999", launcher="local")
    agent = f"runyard-wandb{SEPARATOR}/{SEPARATOR}/checkout/slurm/wandb_agent.sbatch me/project/sweep"
    name = agent if launcher == "submitit, local" else "runyard"
    folder.queue(f"12|RUNNING|None|3:05|57:00|2026-09-21T00:00:00|node1|{name}")
    assert said(run)[0] == state


def test_of_a_sweeps_array_a_run_has_its_own_element(folder: Folder) -> None:
    run = folder.run(job="12_1", sweep="the-sweep")
    script = f"{SEPARATOR}/{SEPARATOR}{folder.path}/.sweeps/the-sweep/submission_0.sh"
    (folder.path / ".sweeps" / "the-sweep").mkdir(parents=True)
    (folder.path / ".sweeps" / "the-sweep" / "runs.txt").write_text(f"{run}-other\n{run}\n")
    others = "12_0|RUNNING|None|1:00|9:00|N/A|n1|the-sweep" + script
    folder.queue("12_1|PENDING|JobArrayTaskLimit|0:00|9:00|N/A||the-sweep" + script, others)
    assert said(run)[0] == "waiting"


def test_of_two_jobs_the_one_that_runs_counts(folder: Folder) -> None:
    jobs = [{"id": number, "launcher": "slurm", "submitted": BEGAN} for number in ("12", "13")]
    run = folder.run(start(1), jobs=jobs)
    folder.queue("13|PENDING|Priority|0:00|9:00|N/A||@", "12|RUNNING|None|3:05|57:00|2026-09-21T00:00:00|node1|@")
    assert said(run)[0] == "running"


def test_a_run_without_a_job_is_new_and_one_that_holds_its_lease_runs(folder: Folder) -> None:
    run = folder.run(job=None)
    assert said(run) == ("waiting", f"not submitted: runyard resume {run.name}")
    held = Lease(run, run.name)
    assert said(run) == ("starting", f"starting here, process {os.getpid()}")
    folder.append(run, start(1, job_id=None))
    assert said(run)[0] == "running"
    held.release()
    assert said(run)[0] == "killed"


def test_a_process_of_that_number_that_is_not_the_runs_is_not_taken_for_it(folder: Folder) -> None:
    run = folder.run(start(1, job_id=None), job=str(os.getpid()), launcher="local")
    assert said(run)[0] == "killed"
    command = [sys.executable, "-c", "import time; time.sleep(60)", "submitit", f"{run}/slurm"]
    with subprocess.Popen(command) as controller:
        while not Path(f"/proc/{controller.pid}/cmdline").read_bytes():  # it has none until its exec is through
            time.sleep(0.01)
        ours = folder.run(start(1, job_id=None), job=str(controller.pid), launcher="local")
        assert said(ours)[0] == "killed", "the folder on its command line is another run's"
        record = json.loads((run / "run.json").read_text())
        record["jobs"][0]["id"] = str(controller.pid)
        (run / "run.json").write_text(json.dumps(record))
        assert said(run) == ("running", f"running here, process {controller.pid}")
        controller.kill()


def test_the_journal_still_writes_the_lines_that_are_passed_over_as_they_are_known(tmp_path: Path) -> None:
    book = Journal(tmp_path / "metrics.jsonl")
    for event in DEFERRED_EVENTS.values():
        book.write(event)
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert all(line.startswith(begin) for line, begin in zip(lines, DEFERRED_EVENTS, strict=True))


def test_a_node_that_is_left_out_is_named_with_the_reason_as_long_as_its_job_waits_or_runs(folder: Folder) -> None:
    left_out = row("exclude", 6, node="node3", why="rank 1: CUDA error: uncorrectable ECC error encountered")
    run = folder.run(start(1), left_out, row("requeue", 7, cause="crash", step=0))
    without = "without node3 (rank 1: CUDA error: uncorrectable ECC error encountered)"
    folder.queue("12|PENDING|BeginTime|0:00|9:00|N/A||@")
    assert said(run)[1].startswith(f"crashed, waiting to go on from the beginning {without} (BeginTime)")
    folder.queue("12|RUNNING|None|0:09|9:00|N/A|node1|@")
    assert said(run)[1].endswith(f", {without}")


def test_a_failure_is_told_with_its_place_and_what_mends_it(folder: Folder) -> None:
    fields = {"message": "rank 1: CUDA error: out of memory", "node": "node3", "step": 7, "cause": "CUDA out of memory"}
    run = folder.run(start(1), stop(5, "failed", **fields))
    told = "failed: rank 1: CUDA error: out of memory (on node3, at step 7); set a smaller batch_size"
    assert said(run)[1].startswith(told)


def test_a_run_whose_batch_script_was_killed_was_cancelled_by_nobody(folder: Folder) -> None:
    run = folder.run(start(1), row("checkpoint", 5, step=40), stop(6, "interrupted", cause="TERM"))
    for reason, words in (("RaisedSignal:9(Killed)", "its batch script was killed: RaisedSignal:9(Killed)"),
                          ("JobLaunchFailure", "its batch script was killed: JobLaunchFailure"),
                          ("NonZeroExitCode", "cancelled")):  # fmt: skip
        folder.queue(f"12|FAILED|{reason}|0:09|9:00|N/A|node1|@")
        assert said(run)[1] == f"stopped at step 40, saved ({words})"
