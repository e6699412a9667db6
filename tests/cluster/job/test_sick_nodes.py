"""Which node a run leaves out, by how its starts ended: a node at fault, and never so many that nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from runyard.cluster.job import task_ends
from runyard.cluster.job.requeue import RequeueDecision, decide_requeue
from runyard.cluster.job.sick_nodes import MAX_EXCLUDED, MAX_EXCLUDED_BLIND, JobNodes
from runyard.runs.events import Row, parse_event, parse_failure

BEGAN = 1000.0
SHOWN = "JobId=12 JobName=x\n   NumNodes=2-2 NumCPUs=2\n   ReqNodeList={} ExcNodeList={}\n"
SINFO = "node1|alloc|a100|gpu:4\nnode2|alloc|a100|gpu:4\nnode3|idle|a100|gpu:4\nnode4|idle*|a100|gpu:4\n"
JOB = JobNodes.read(SHOWN.format("(null)", "(null)") + SINFO)


def start(step: int = 0) -> Row:
    return {"event": "start", "t": BEGAN + 1, "step": step}


def stop(node: str = "node2", step: int | None = 0, cause: str | None = None, exception: str = "RuntimeError") -> Row:
    fields = {"message": "rank 1: it", "rank": 1, "node": node, "exception": exception, "step": step, "cause": cause}
    known = {name: value for name, value in fields.items() if value is not None}
    return {"event": "stop", "t": BEGAN + 2, "reason": "failed", "retry": True, "user_error": False} | known


def requeued(failed: Row, *, before: bool = True, without: str | None = None) -> Row:
    failure = {key: failed[key] for key in ("message", "rank", "node", "step", "exception", "cause") if key in failed}
    row: Row = {"event": "requeue", "t": BEGAN - 1, "cause": "crash", "step": 0,
                "failure": failure | ({"before_first_step": True} if before else {})}  # fmt: skip
    return row | ({"without_node": without} if without else {})


def judged(*rows: Row, job: JobNodes = JOB, first_end: Row | None = None) -> RequeueDecision:
    events, ended = [parse_event(row) for row in rows], parse_failure(first_end or {})
    return decide_requeue(events, 1, 0, preempted=False, began=BEGAN, first_end=ended, job=job)


def test_a_known_fault_of_a_node_leaves_it_out_at_once_and_is_no_restart_without_progress() -> None:
    found = judged(start(), stop(cause="GPU fault"))
    assert (found.requeue_cause, found.exclude_reason, found.without_progress) == ("crash", "rank 1: it", 0)
    assert found.failure.before_first_step
    control = judged(start(), stop(cause="CUDA out of memory"))
    assert (control.requeue_cause, control.exclude_reason, control.without_progress) == ("crash", None, 1)


def test_a_node_is_left_out_after_two_starts_that_ended_there_before_their_first_step() -> None:
    first = stop(cause="connection lost", exception="X")
    again = judged(requeued(first), start(), stop())
    assert again.exclude_reason == "two starts ended there before their first step: rank 1: it"
    assert judged(requeued(stop("node1")), start(), stop(exception="Y")).exclude_reason is None, (
        "the control: another node"
    )
    assert judged(requeued(first), start(), stop(step=5)).exclude_reason is None, "the control: after its first step"
    assert judged(requeued(first, before=False), start(), stop()).exclude_reason is None


def test_the_same_exception_at_the_same_step_twice_is_the_end_unless_it_is_the_nodes() -> None:
    same = stop(step=5)
    found = judged(requeued(same, before=False), start(), same)
    assert found.requeue_cause is None
    assert found.given_up == "given up: the same failure at step 5 twice, on node2: rank 1: it (on node2, at step 5)"
    for other in (stop(step=6), stop(step=5, exception="KeyError"), stop(step=5, cause="NCCL error")):
        assert judged(requeued(same, before=False), start(), other).requeue_cause == "crash", "the control"
    faults = judged(requeued(stop("node1", cause="GPU fault")), start(), stop("node2", cause="GPU fault"))
    assert faults.exclude_reason, "two nodes may both be broken"
    missing = stop("node2", cause="import error")
    found = judged(requeued(stop("node1", cause="import error")), start(), missing)
    assert (found.given_up or "").startswith("given up: the same failure at step 0 twice, on node1 and node2")


def test_what_cannot_end_well_is_not_tried_again() -> None:
    end = {"rank": 0, "node": "node1", "message": "exit code 1: OSError: disk full", "cause": "disk full"}
    found = judged(first_end=end)
    assert (found.exit_code, found.requeue_cause) == (1, None)
    assert "make room" in (found.given_up or "")
    assert judged(first_end=end | {"cause": "NCCL error"}).requeue_cause == "crash", "the control"


KEPT = {
    "enough are left": (SHOWN.format("(null)", "(null)") + SINFO, 0, None),
    "a person wants this node": (SHOWN.format("node[1-2]", "(null)") + SINFO, 0, "cluster.nodelist asks for node2"),
    "too few are up": (SHOWN.format("(null)", "(null)") + SINFO.replace("node3|idle", "node3|drain"), 0,
                       "only 1 other nodes like it are up, and the job needs 2"),
    "others are of another kind": (SHOWN.format("(null)", "(null)") + SINFO.replace("node3|idle|a100", "node3|idle|v"),
                                   0, "only 1 other nodes like it are up, and the job needs 2"),
    "the others are left out": (SHOWN.format("(null)", "node[3-4]") + SINFO, 0,
                                "only 1 other nodes like it are up, and the job needs 2"),
    "too many were": (SHOWN.format("(null)", "(null)") + SINFO, MAX_EXCLUDED, "5 nodes are left out already"),
    "nobody says how many there are": (SHOWN.format("(null)", "(null)"), 0, None),
    "nor whether there are more": ("", MAX_EXCLUDED_BLIND, "2 nodes are left out already"),
}  # fmt: skip


@pytest.mark.parametrize(("told", "left_out", "objection"), KEPT.values(), ids=KEPT)
def test_a_node_is_kept_where_the_job_could_not_run_without_it(told: str, left_out: int, objection: str | None) -> None:
    assert JobNodes.read(told).exclusion_objection("node2", left_out) == objection


def test_a_node_that_cannot_be_left_out_counts_as_any_crash_and_the_verdict_says_why() -> None:
    pinned = JobNodes.read(SHOWN.format("node[1-2]", "(null)") + SINFO)
    rows = [requeued(stop(cause="GPU fault", exception=f"E{k}")) for k in range(3)]
    found = judged(rows[0], start(), stop(cause="GPU fault"), job=pinned)
    assert (found.exclude_reason, found.without_progress) == (None, 2)
    last = judged(*rows, start(), stop(cause="GPU fault"), job=pinned)
    assert "node2 is not left out: cluster.nodelist asks for node2" in (last.given_up or "")


def test_restarts_without_a_faulty_node_use_up_none_of_the_three() -> None:
    rows = [requeued(stop(f"node{k}", cause="GPU fault"), without=f"node{k}") for k in (5, 6, 7)]
    assert judged(*rows, start(), stop("node1")).without_progress == 1
    counted = [{key: value for key, value in row.items() if key != "without_node"} for row in rows]
    assert judged(*counted, start(), stop("node1")).requeue_cause is None, "the control"


def test_a_persons_own_wish_stays_on_the_list() -> None:
    assert JobNodes.read(SHOWN.format("(null)", "node[8-9]")).excluding("node2") == "node[8-9],node2"
    assert JOB.excluding("node2") == "node2"


# What srun 22.05 says in a job's log, how the first task ended, and on which node.
ENDS = {
    "srun: error: node2: tasks 2-3: Exited with exit code 127\nsrun: error: node1: tasks 0-1: Terminated\n":
        (2, "node2", "exit code 127", "no Python", "exit code 127"),
    "srun: error: node1: task 0: Killed\n": (0, "node1", None, "killed from outside", "killed by SIGKILL (signal 9)"),
    "srun: error: node1: task 0: Exited with exit code 137\n":
        (0, "node1", None, "killed from outside", "killed by SIGKILL (signal 9)"),
    "srun: error: n-1: task 7: Bus error (core dumped)\n":
        (7, "n-1", None, "bus error", "killed by SIGBUS (signal 7)"),
    "srun: error: node1: task 0: Out Of Memory\n":
        (0, "node1", None, "host out of memory", "killed by the kernel's out-of-memory killer"),
    "srun: error: node1: task 0: Exited with exit code 9\n": (0, "node1", "exit code 9", None, "exit code 9"),
}  # fmt: skip


@pytest.mark.parametrize("text", ENDS)
def test_srun_says_which_task_ended_first_and_how(text: str, tmp_path: Path) -> None:
    log = tmp_path / "12_0_log.err"
    earlier = "srun: error: node9: task 0: Killed\n"
    log.write_text(earlier + text)
    rank, node, exception, cause, message = ENDS[text]
    known = {"rank": rank, "node": node, "exception": exception, "cause": cause, "message": message}
    assert task_ends.first_task_exit(log, len(earlier)) == {k: v for k, v in known.items() if v is not None}
    assert task_ends.first_task_exit(log, 0)["node"] == "node9", "the control: an earlier start's"


def test_a_tasks_last_line_names_its_exception(tmp_path: Path) -> None:
    log = tmp_path / "12_0_log.err"
    log.write_text("srun: error: node2: task 1: Exited with exit code 1\n")
    (tmp_path / "12_1_log.err").write_text(
        "Traceback (most recent call last):\n  ...\nRuntimeError: CUDA error: uncorrectable ECC error encountered\n"
        "CUDA kernel errors might be asynchronously reported\nException raised from x at y (most recent call first):\n"
        "frame #0: c10::Error (0x7f in /x/libc10.so)\nslurmstepd-node2: error: *** STEP 12.0 ON node1 CANCELLED ***\n"
    )
    assert task_ends.first_task_exit(log, 0) == {
        "rank": 1, "node": "node2", "exception": "RuntimeError", "cause": "GPU fault",
        "message": "exit code 1: RuntimeError: CUDA error: uncorrectable ECC error encountered",
    }  # fmt: skip


def test_a_log_that_says_nothing_of_a_task_is_not_guessed_from(tmp_path: Path) -> None:
    (tmp_path / "12_0_log.err").write_text("slurmstepd: error: *** JOB 12 CANCELLED ***\n")
    for log in ("12_0_log.err", "none", "."):
        assert task_ends.first_task_exit(tmp_path / log, 0) == {}
