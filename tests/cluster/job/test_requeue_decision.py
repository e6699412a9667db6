"""What becomes of a job whose tasks have ended, judged by the run's journal."""

from __future__ import annotations

import pytest

from runyard.cluster.job.requeue import RequeueDecision, decide_requeue
from runyard.runs.events import Event, Row, parse_event

BEGAN = 1000.0  # when the start that is judged began
START: Row = {"event": "start", "t": BEGAN + 1}
FINISHED: Row = {"event": "stop", "t": BEGAN + 2, "reason": "finished"}
GIVEN_UP: Row = {"event": "stop", "t": BEGAN - 1, "reason": "failed", "message": "given up: it", "retry": False,
                 "given_up": True}  # fmt: skip
CRASH = RequeueDecision(1, requeue_cause="crash", without_progress=1)
LIMIT = RequeueDecision(130, requeue_cause="time limit", without_progress=1)
LIMIT_REACHED = "its time limit, which leaves it no time to get further: set a longer cluster.timeout_min"


def interrupted(cause: str | None, t: float = BEGAN + 2) -> Row:
    return {"event": "stop", "t": t, "reason": "interrupted", "message": "", "cause": cause}


def failed(*, retry: bool, user_error: bool = False, message: str = "rank 1 of 4 ended without a word") -> Row:
    return {"event": "stop", "t": BEGAN + 2, "reason": "failed", "message": message, "retry": retry,
            "user_error": user_error}  # fmt: skip


def requeued(cause: str, step: int) -> Row:
    return {"event": "requeue", "t": BEGAN - 1, "cause": cause, "step": step}


def crashes(times: int, step: int = 40) -> list[Row]:
    return [START, requeued("crash", step)] * times


def limits(times: int, step: int = 40) -> list[Row]:
    return [START, interrupted("USR2", BEGAN - 2), requeued("time limit", step)] * times


def events(rows: list[Row]) -> list[Event]:
    return [parse_event(row) for row in rows]


def given_up(said: str) -> RequeueDecision:
    message = f"given up: 3 restarts without progress at step 40; the last ended with: {said}"
    return RequeueDecision(1, given_up=message, without_progress=3)


# The journal, srun's exit code, whether SLURM preempts, and what follows. The newest checkpoint is of step 40.
CASES: dict[str, tuple[list[Row], int, bool, RequeueDecision]] = {
    "finished": ([START, FINISHED], 0, False, RequeueDecision(0)),
    "finished, and then W&B failed": ([START, FINISHED], 1, False, RequeueDecision(0)),
    "finished while being preempted": ([START, FINISHED], 0, True, RequeueDecision(0)),
    "stopped before the time limit by its clock": (
        [START, interrupted("time limit")], 0, False, LIMIT),
    "stopped by SLURM's USR2": ([START, interrupted("USR2")], 0, False, LIMIT),
    "stopped by USR2 and preempted": (
        [START, interrupted("USR2")], 0, True, RequeueDecision(130, requeue_cause="preemption")),
    "stopped by TERM: somebody's wish": ([START, interrupted("TERM")], 0, False, RequeueDecision(130)),
    "stopped by TERM and preempted": (
        [START, interrupted("TERM")], 0, True, RequeueDecision(130, requeue_cause="preemption")),
    "stopped by USR1, with which the site preempts, after time limits": (
        [*limits(3), START, interrupted("USR1")], 0, False, RequeueDecision(130, requeue_cause="preemption")),
    "a time limit, further than before": (
        [*crashes(3, 30), *limits(3, 39), START, interrupted("time limit")], 0, False, LIMIT),
    "a third time limit at the same step": (
        [*limits(2), START, interrupted("USR2")], 0, False, RequeueDecision(130, "time limit", None, 3)),
    "three time limits got no further": (
        [*limits(3), START, interrupted("USR2")], 0, False, given_up(LIMIT_REACHED)),
    "a time limit after crashes, no further": (
        [*crashes(2), *limits(1), START, interrupted("time limit")], 0, False, given_up(LIMIT_REACHED)),
    "a rank died": ([START, failed(retry=True)], 1, False, CRASH),
    "rank 0 died without a word": ([START], 137, False, CRASH),
    "no start at all": ([], 1, False, CRASH),
    "no start after a requeue": ([START, requeued("time limit", 30)], 1, False, CRASH),
    "srun itself says all is well, the journal does not": ([START], 0, False, CRASH),
    "a second crash at the same step": ([*crashes(1), START], 1, False, RequeueDecision(1, "crash", None, 2)),
    "a third crash at the same step": ([*crashes(2), START], 1, False, RequeueDecision(1, "crash", None, 3)),
    "three restarts got no further": (
        [*crashes(3), START, failed(retry=True)], 1, False, given_up("rank 1 of 4 ended without a word")),
    "three restarts never got to a start": (
        [requeued("crash", 40)] * 3, 127, False, given_up("srun ended with 127 and the tasks said nothing")),
    "many crashes, each after progress": (
        [row for step in (10, 20, 30) for row in crashes(2, step)] + [START], 1, False, CRASH),
    "progress between crashes at one step": (
        [*crashes(3, 30), *crashes(1), START], 1, False, RequeueDecision(1, "crash", None, 2)),
    "preemptions between crashes count for nothing": (
        [*crashes(1), requeued("preemption", 40), *crashes(1), requeued("preemption", 40), START], 1, False,
        RequeueDecision(1, "crash", None, 3)),
    "preemptions between crashes do not hide them": (
        [*crashes(2), requeued("preemption", 40), *crashes(1), requeued("preemption", 40), START], 1, False,
        given_up("srun ended with 1 and the tasks said nothing")),
    "preemptions without end": ([requeued("preemption", 40)] * 50 + [START, interrupted("TERM")], 0, True,
                                RequeueDecision(130, requeue_cause="preemption")),
    "a rank was ended by the preemption": (
        [*crashes(3), START, failed(retry=True)], 1, True, RequeueDecision(1, requeue_cause="preemption")),
    "preempted after time limits": (
        [*limits(3), START, interrupted("USR2")], 0, True, RequeueDecision(130, "preemption")),
    "resumed after it was given up: counted anew": ([*crashes(3), GIVEN_UP, START], 1, False, CRASH),
    "resumed after it was given up, and no start": ([*crashes(3), GIVEN_UP], 1, False, CRASH),
    "resumed after a cancel, and no start": ([START, interrupted("TERM", BEGAN - 1)], 1, False, CRASH),
    "a user's mistake": ([START, failed(retry=False, user_error=True)], 2, False, RequeueDecision(2)),
    "a user's mistake, other ranks killed": (
        [START, failed(retry=False, user_error=True)], 137, False, RequeueDecision(2)),
    "a user's mistake before the journal was open": ([], 2, False, RequeueDecision(2)),
    "a user's mistake while being preempted": (
        [START, failed(retry=False, user_error=True)], 2, True, RequeueDecision(2)),
    "diverged: it would again": ([START, failed(retry=False)], 1, False, RequeueDecision(1)),
    "an older journal without retry": ([START, {"event": "stop", "t": BEGAN + 2, "reason": "failed"}], 1, False, CRASH),
}  # fmt: skip


# What follows where nobody could save before the time limit: SLURM says that it ends the job for it, or the clock does.
AT_THE_LIMIT: dict[str, tuple[list[Row], int, RequeueDecision]] = {
    "a rank hung": ([START], 1, RequeueDecision(1, "time limit", None, 1)),
    "a rank hung, and another missed it": ([START, failed(retry=True)], 1, RequeueDecision(1, "time limit", None, 1)),
    "a rank hung before the start": ([], 1, RequeueDecision(1, "time limit", None, 1)),
    "a rank always hangs": ([*limits(3), START], 1, given_up(LIMIT_REACHED)),
    "finished": ([START, FINISHED], 0, RequeueDecision(0)),
    "a user's mistake": ([START, failed(retry=False, user_error=True)], 2, RequeueDecision(2)),
}


@pytest.mark.parametrize(("rows", "ended", "verdict"), AT_THE_LIMIT.values(), ids=AT_THE_LIMIT)
def test_a_limit_that_comes_unsaved_is_a_time_limit(rows: list[Row], ended: int, verdict: RequeueDecision) -> None:
    for told in ({"time_limit_hit": True}, {"past_time_limit": True}):
        assert decide_requeue(events(rows), ended, 40, preempted=False, began=BEGAN, **told) == verdict


def test_the_term_of_a_time_limit_is_nobodys_wish() -> None:
    rows = [START, interrupted("TERM")]
    assert decide_requeue(events(rows), 0, 40, preempted=False, time_limit_hit=True, began=BEGAN) == LIMIT
    assert decide_requeue(events(rows), 0, 40, preempted=False, past_time_limit=True, began=BEGAN) == RequeueDecision(
        130
    ), "the control: a late cancel"


@pytest.mark.parametrize(("rows", "ended", "preempted", "verdict"), CASES.values(), ids=CASES)
def test_a_job_goes_on_where_that_can_help(
    rows: list[Row], ended: int, preempted: bool, verdict: RequeueDecision
) -> None:
    others: list[Row] = [{"event": "epoch", "t": BEGAN + 3}, {"event": "warning", "t": BEGAN + 3, "message": "w"}]
    for journal_rows in (rows, [*rows, *others]):  # what stands behind does not count
        assert decide_requeue(events(journal_rows), ended, 40, preempted=preempted, began=BEGAN) == verdict
