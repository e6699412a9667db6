"""Whether a job goes back into the queue. slurm/requeue.sh asks: ``python -m runyard.cluster.job.requeue ...``.

After a preemption always, after a time limit or a crash as long as the run gets further, without a node that is at
fault. All tasks have ended by then, so nothing that they write is lost. SLURM's commands are not called here: a
container may have none. What they said of the job comes on standard input, and EXCLUDE is a file for what is to be told
to them: the nodes to leave out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runyard import known_causes
from runyard.cluster.job import sick_nodes, task_ends
from runyard.cluster.job.alert import tell
from runyard.errors import FAILED, INTERRUPTED, USER_ERROR, UserError
from runyard.runs import journal
from runyard.runs.journal import Journal, Row
from runyard.runs.run import Run
from runyard.training.stop_signals import UNSAVED_AT_S, Stop

REQUEUE = 75  # exit code: put this job back into the queue (sysexits.h calls it a temporary failure)
MOST_WITHOUT_PROGRESS = 3  # crashes and time limits in a row that a run is started again after, if it gets no further
LIMIT_REACHED = "its time limit, which leaves it no time to get further: set a longer cluster.timeout_min"
KEPT = ("message", "rank", "node", "step", "exception", "cause")  # of a failure, by the journal's stop row
LOG_BEGAN = "RUNYARD_LOG_BEGAN"  # at which byte of the job's error log this start's words begin
COUNTED = ("crash", "time limit")  # a start that takes all of its time limit would burn the allocation for ever


@dataclass(frozen=True)
class Verdict:
    """What becomes of a job whose tasks have ended."""

    exit_code: int
    requeue: str | None = None  # why it goes on, or None
    given_up: str | None = None  # why it does not, though it might
    without_progress: int = 0
    sick: str | None = None  # why the node that it failed on is to be left out, or None
    failure: Row = field(default_factory=dict, compare=False)  # what is known of how it failed


def judge(
    rows: list[Row],
    ended: int,
    step: int,
    *,
    preempted: bool,
    limit: bool = False,
    late: bool = False,
    began: float = 0,
    first_end: Row | None = None,
    job: sick_nodes.Job | None = None,
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
        first_end: How the first of its tasks ended, as srun says it.
        job: Its nodes, as SLURM says; None where nobody does.
    """
    stop = _stop(rows, began)
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
    failed = failure(rows, began, step, first_end or {})
    return _after_a_crash(rows, ended, step, failed, job or sick_nodes.Job())


def failure(rows: list[Row], began: float, step: int, first_end: Row) -> Row:
    """How this start failed, as far as it is known: the journal's word, and srun's for what that leaves open.

    Its keys: message, rank, node, step, exception, cause, before_first_step.
    """
    stop = _stop(rows, began)
    start = next((row for row in reversed(rows) if row["event"] == "start" and row["t"] >= began), None)
    told = {k: v for k in KEPT if (v := stop.get(k)) is not None}
    if "exception" not in told and "cause" not in told:  # nobody was left to say it, or it was not seen from there
        told = {**told, **first_end} if "node" not in told or told["node"] == first_end.get("node") else told
    if start is None:
        told |= {"step": step, "before_first_step": True}
    elif told.get("step") == start.get("step") is not None:
        told["before_first_step"] = True
    return told


def _stop(rows: list[Row], began: float) -> Row:
    """The stop row of this start; empty if it has none."""
    last: Row = next((row for row in reversed(rows) if row["event"] in ("start", "stop", "requeue")), {"event": "none"})
    return last if last["event"] == "stop" and last["t"] >= began else {}


def _after_a_crash(rows: list[Row], ended: int, step: int, failed: Row, job: sick_nodes.Job) -> Verdict:
    earlier = [row["failure"] for row in _since_it_was_given_up(rows) if isinstance(row.get("failure"), dict)]
    left_out = [row for row in rows if row["event"] == "exclude"]
    sick = sick_nodes.why_sick(failed, earlier)
    kept = job.objection(failed["node"], len(left_out)) if sick else None
    silent = f"srun ended with {ended} and the tasks said nothing"
    said = known_causes.in_words(failed) if "message" in failed else silent
    if not known_causes.can_help(failed):
        return Verdict(FAILED, given_up=f"given up: {said}", failure=failed)
    if again := sick_nodes.repeated(failed, earlier, same_node=not sick or kept is not None):
        where = " and ".join(dict.fromkeys(str(f["node"]) for f in (again, failed) if f.get("node")))
        twice = f"given up: the same failure at step {failed['step']} twice, on {where}: {said}"
        return Verdict(FAILED, given_up=twice, failure=failed)
    if sick and not kept:
        restarts = _restarts_without_progress(rows, step)
        return Verdict(FAILED, "crash", without_progress=restarts, sick=sick, failure=failed)
    if sick:
        said += f" ({failed['node']} is not left out: {kept})"
    return replace(_if_it_gets_further(rows, step, FAILED, "crash", said), failure=failed)


def _if_it_gets_further(rows: list[Row], step: int, exit_code: int, cause: str, said: str) -> Verdict:
    """Requeued for this ``cause``, unless it was so often enough and is still where it was."""
    restarts = _restarts_without_progress(rows, step)
    if restarts >= MOST_WITHOUT_PROGRESS:
        given_up = f"given up: {restarts} restarts without progress at step {step}; the last ended with: {said}"
        return Verdict(FAILED, given_up=given_up, without_progress=restarts)
    return Verdict(exit_code, requeue=cause, without_progress=restarts + 1)


def _since_it_was_given_up(rows: list[Row]) -> list[Row]:
    """A person's resume counts anew."""
    given_up = [at for at, row in enumerate(rows) if row["event"] == "stop" and row.get("given_up")]
    return rows[given_up[-1] + 1 :] if given_up else rows


def _restarts_without_progress(rows: list[Row], step: int) -> int:
    """How often the run was restarted and is still where it was, but for restarts without a node that was at fault."""
    count = 0
    for row in reversed(_since_it_was_given_up(rows)):
        if row["event"] == "requeue":
            if row.get("step") != step:
                break
            count += row.get("cause") in COUNTED and not row.get("without_node")
    return count


def main(
    run_dir: str, ended: int, *, preempted: bool, limit: bool = False, told: str = "", exclude: Path | None = None
) -> int:
    """Judge, and write down what was decided. Returns ``REQUEUE``, or the batch script's exit code.

    Args:
        told: What SLURM says of the job and its partition's nodes; "" where it was not asked.
        exclude: Where to write the nodes that SLURM is to leave out.
    """
    run = Run.open(run_dir)
    if (other := run.successor()) is not None:
        print(f"runyard: run {run.id} is written by {other}: this job leaves it to that", file=sys.stderr, flush=True)
        return ended or FAILED
    step, evaluated = newest_step(run), newest_evaluated(run)
    # An evaluation longer than the time limit gets further, too, and its step stays the same.
    rows = [row for row in journal.read(run.journal_path)[0] if not evaluated or _evaluated(row) in (None, evaluated)]
    began, end, log_began = (os.environ.get(name, "") for name in ("RUNYARD_BEGAN", "SLURM_JOB_END_TIME", LOG_BEGAN))
    late = end.isdigit() and time.time() >= int(end) - UNSAVED_AT_S
    first_end = task_ends.first_end(Path(os.path.realpath("/proc/self/fd/2")), int(log_began)) if log_began else {}
    job = sick_nodes.Job.read(told)
    verdict = judge(
        rows, ended, step, preempted=preempted, limit=limit, late=late, began=float(began or 0), first_end=first_end,
        job=job,
    )  # fmt: skip
    book = Journal(run.journal_path)
    if verdict.given_up:
        fields = {k: v for k, v in verdict.failure.items() if k in KEPT} | {"message": verdict.given_up}
        _note(book, "stop", reason="failed", user_error=False, retry=False, given_up=True, **fields)
        print(f"runyard: {verdict.given_up}", file=sys.stderr, flush=True)
        tell(run)
    if verdict.requeue is None or not run.config.cluster.requeue:
        return verdict.exit_code
    row: Row = {"cause": verdict.requeue, "step": step, "without_progress": verdict.without_progress}
    row |= {"evaluated": evaluated} if evaluated else {}
    row |= {"failure": verdict.failure} if verdict.failure else {}
    if verdict.sick and exclude is not None:
        row["without_node"] = node = verdict.failure["node"]
        exclude.write_text(job.without(node))
        _note(book, "exclude", node=node, why=verdict.sick, job=os.environ.get("SLURM_JOB_ID"))
        print(f"runyard: {node} is left out from now on: {verdict.sick}", file=sys.stderr, flush=True)
    _note(book, "requeue", **row)
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


def newest_evaluated(run: Run) -> int:
    """Images that the newest checkpoint has of an evaluation under way."""
    try:
        said = json.loads((run.checkpoints / f"step_{newest_step(run):08d}" / "manifest.json").read_bytes())
        return int(said.get("evaluated", 0))
    except (OSError, ValueError, TypeError, AttributeError):
        return 0


def _evaluated(row: Row) -> int | None:
    """The same of a requeue; None for another row."""
    return int(row.get("evaluated", 0)) if row["event"] == "requeue" else None


if __name__ == "__main__":
    run_dir, code, ending, *rest = sys.argv[1:]
    try:
        if ending == "refused":
            sys.exit(refused(run_dir, int(code), *rest))
        told, file = "" if sys.stdin.isatty() else sys.stdin.read(), Path(rest[0]) if rest else None
        asked = {"preempted": ending == "1", "limit": ending == "limit"}
        sys.exit(main(run_dir, int(code), **asked, told=told, exclude=file))
    except UserError as error:  # another start would find the run as damaged
        print(f"runyard: {error}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)
