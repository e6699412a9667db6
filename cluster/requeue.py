"""Whether a job goes back into the queue: ``python -m cluster.requeue RUN CODE ENDING``, as slurm/requeue.sh asks.

After a preemption always, after a time limit or a crash as long as the run gets further. All tasks have ended by then,
so nothing that they write is lost. SLURM's commands are not called here: a container may have none.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from cluster.tell import tell
from runyard.errors import FAILED, INTERRUPTED, USER_ERROR, UserError
from runyard.run import Run
from runyard.stopping import UNSAVED_AT_S, Stop
from runyard.tracking import journal
from runyard.tracking.journal import Journal, Row

REQUEUE = 75  # exit code: put this job back into the queue (sysexits.h calls it a temporary failure)
MOST_WITHOUT_PROGRESS = 3  # crashes and time limits in a row that a run is started again after, if it gets no further
LIMIT_REACHED = "its time limit, which leaves it no time to get further: set a longer cluster.timeout_min"
COUNTED = ("crash", "time limit")  # a start that takes all of its time limit would burn the allocation for ever


@dataclass(frozen=True)
class Verdict:
    """What becomes of a job whose tasks have ended."""

    exit_code: int
    requeue: str | None = None  # why it goes on, or None
    given_up: str | None = None  # why it does not, though it might
    without_progress: int = 0


def judge(
    rows: list[Row],
    ended: int,
    step: int,
    *,
    preempted: bool,
    limit: bool = False,
    late: bool = False,
    began: float = 0,
) -> Verdict:
    """From the run's journal, srun's exit code and the newest checkpoint's step.

    Args:
        rows: The whole journal, oldest first.
        ended: What srun ended with.
        step: Step of the newest checkpoint, 0 if there is none.
        preempted: SLURM is about to take the nodes from this job for another.
        limit: SLURM ends this job for its time limit: what its tasks heard of TERM is no person's wish.
        late: Its time limit has come, whether or not SLURM has seen that yet.
        began: When this start of the job began, unix seconds: how earlier ones ended says nothing of it.
    """
    last: Row = next((row for row in reversed(rows) if row["event"] in ("start", "stop", "requeue")), {"event": "none"})
    stop = last if last["event"] == "stop" and last["t"] >= began else {}
    if stop.get("reason") == "finished":
        return Verdict(0)
    if stop.get("reason") == "interrupted":
        if stop.get("cause") == Stop.TERM.words and not preempted and not limit:
            return Verdict(INTERRUPTED)  # somebody wanted it to end
        if preempted:
            return Verdict(INTERRUPTED, requeue="preemption")
        return _if_it_gets_further(rows, step, INTERRUPTED, "time limit", LIMIT_REACHED)
    if stop.get("reason") == "failed" and not stop.get("retry", True):
        return Verdict(USER_ERROR if stop.get("user_error") else FAILED)
    if ended == USER_ERROR:  # a mistake found before the journal was open
        return Verdict(USER_ERROR)
    if preempted:  # without a grace time its tasks do not end, but are ended
        return Verdict(FAILED, requeue="preemption")
    if limit or late:  # unsaved: a rank hung
        return _if_it_gets_further(rows, step, FAILED, "time limit", LIMIT_REACHED)
    said = stop.get("message") or f"srun ended with {ended} and the tasks said nothing"
    return _if_it_gets_further(rows, step, FAILED, "crash", said)


def _if_it_gets_further(rows: list[Row], step: int, exit_code: int, cause: str, said: str) -> Verdict:
    """Requeued for this ``cause``, unless it was so often enough and is still where it was."""
    restarts = _restarts_without_progress(rows, step)
    if restarts >= MOST_WITHOUT_PROGRESS:
        given_up = f"given up: {restarts} restarts without progress at step {step}; the last ended with: {said}"
        return Verdict(FAILED, given_up=given_up, without_progress=restarts)
    return Verdict(exit_code, requeue=cause, without_progress=restarts + 1)


def _restarts_without_progress(rows: list[Row], step: int) -> int:
    """How often the run was restarted and is still where it was. A person's resume counts anew."""
    count = 0
    for row in reversed(rows):
        if row["event"] == "stop" and str(row.get("message", "")).startswith("given up"):
            break
        if row["event"] == "requeue":
            if row.get("step") != step:
                break
            count += row.get("cause") in COUNTED
    return count


def main(run_dir: str, ended: int, *, preempted: bool, limit: bool = False) -> int:
    """Judge, and write down what was decided. Returns ``REQUEUE``, or the batch script's exit code."""
    run = Run.open(run_dir)
    if (other := run.successor()) is not None:
        print(f"runyard: run {run.id} is written by {other}: this job leaves it to that", file=sys.stderr, flush=True)
        return ended or FAILED
    rows, _ = journal.read(run.journal_path)
    step = newest_step(run)
    began, end = (os.environ.get(name, "") for name in ("RUNYARD_BEGAN", "SLURM_JOB_END_TIME"))
    late = end.isdigit() and time.time() >= int(end) - UNSAVED_AT_S
    verdict = judge(rows, ended, step, preempted=preempted, limit=limit, late=late, began=float(began or 0))
    book = Journal(run.journal_path)
    if verdict.given_up:
        _note(book, "stop", reason="failed", message=verdict.given_up, user_error=False, retry=False)
        print(f"runyard: {verdict.given_up}", file=sys.stderr, flush=True)
        tell(run)
    if verdict.requeue is None or not run.config.cluster.requeue:
        return verdict.exit_code
    _note(book, "requeue", cause=verdict.requeue, step=step, without_progress=verdict.without_progress)
    print(f"runyard: {verdict.requeue}: back into the queue, to go on at step {step}", flush=True)
    return REQUEUE


def _note(book: Journal, event: str, **fields: Any) -> None:
    """Write it down; where the disk is full the decision stands all the same."""
    try:
        book.write(event, **fields)
    except OSError as error:
        print(f"runyard: {book.path}: {error.strerror}: {event} not written down", file=sys.stderr, flush=True)


def refused(run_dir: str, ended: int, why: str) -> int:
    """SLURM would not put this job back into the queue: write down why, and what mends it. Returns the exit code."""
    run = Run.open(run_dir)
    mend = f"this job could not be requeued ({' '.join(why.split())}); go on with: runyard resume {run.reference}"
    _note(Journal(run.journal_path), "warning", message=mend)
    print(f"runyard: {mend}", file=sys.stderr, flush=True)
    return ended or FAILED


def newest_step(run: Run) -> int:
    """Step of the newest checkpoint that has a manifest, 0 if there is none. What it holds is verified on reading."""
    found = [p.parent.name.removeprefix("step_") for p in run.checkpoints.glob("step_*/manifest.json")]
    return max((int(step) for step in found if step.isdigit()), default=0)


if __name__ == "__main__":
    run_dir, ended, ending, *why = sys.argv[1:]
    try:
        if why:
            sys.exit(refused(run_dir, int(ended), *why))
        sys.exit(main(run_dir, int(ended), preempted=ending == "1", limit=ending == "limit"))
    except UserError as error:  # another start would find the run as damaged
        print(f"runyard: {error}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)
