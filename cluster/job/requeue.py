"""Decides whether a job is requeued, for slurm/requeue.sh: ``python -m runyard.cluster.job.requeue ...``.

A job is requeued after every preemption. After a time limit or a crash it is requeued as long as the run makes
progress, without a node that is at fault. In a chain (``chain``) its next job goes on instead. All tasks have ended by
then, so nothing that they write is lost. SLURM's commands are not called here, because a container may have none: what
they print about the job comes on standard input, and the nodes that the job is to exclude are written to the file
EXCLUDE. A job of several runs is requeued if one of them is to go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from runyard import known_causes
from runyard.cluster.job import chain, sick_nodes, task_ends
from runyard.cluster.job.alert import tell_end
from runyard.cluster.slurm import pack
from runyard.cluster.slurm.queue import RUN_SEPARATOR
from runyard.errors import ExitCode, UserError
from runyard.files import read_regular
from runyard.runs.events import Event, ExcludeEvent, Failure, RequeueEvent, Row, StartEvent, StopEvent, parse_failure
from runyard.runs.journal import Journal, read_events
from runyard.runs.lease_holder import LeaseHolder
from runyard.runs.run import Run
from runyard.runs.state import JournalState
from runyard.runs.summary import RunSummary
from runyard.tracking.notify import notify_end
from runyard.training.stop_signals import HANG_EXIT_MARGIN_S, StopReason

MAX_RESTARTS_WITHOUT_PROGRESS = 3  # crashes and time limits in a row; then the run is given up
LIMIT_REACHED = "its time limit, which leaves it no time to get further: set a longer cluster.timeout_min"
LOG_BEGAN = "RUNYARD_LOG_BEGAN"  # the byte of the job's error log at which this start's output begins
COUNTED_CAUSES = ("crash", "time limit")  # a run that always uses up its time limit would burn the allocation


@dataclass(frozen=True)
class RequeueDecision:
    """What becomes of a job whose tasks have ended."""

    exit_code: int
    requeue_cause: str | None = None  # why it is requeued, or None
    given_up: str | None = None  # why the run is given up, or None
    without_progress: int = 0
    exclude_reason: str | None = None  # why the node that it failed on is to be excluded, or None
    failure: Failure = field(default_factory=Failure, compare=False)  # what is known about the failure


def decide_requeue(
    events: list[Event],
    exit_code: int,
    step: int,
    *,
    preempted: bool,
    time_limit_hit: bool = False,
    past_time_limit: bool = False,
    began: float = 0,
    first_end: Failure | None = None,
    job: sick_nodes.JobNodes | None = None,
) -> RequeueDecision:
    """Decide from the run's journal, srun's exit code and the newest checkpoint's step.

    Args:
        events: The whole journal, oldest first.
        exit_code: srun's exit code.
        step: Step of the newest checkpoint, 0 if there is none.
        preempted: SLURM is about to take the nodes from this job for another.
        time_limit_hit: SLURM ends this job at its time limit, so a SIGTERM that its tasks received is no cancellation.
        past_time_limit: Its time limit has passed, whether or not SLURM has noticed yet.
        began: When this start of the job began, unix seconds. The ends of earlier starts are ignored.
        first_end: How the first of its tasks ended, as srun reports it.
        job: Its nodes, as SLURM reports them; None if unknown.
    """
    stop = _stop(events, began)
    if stop is not None and stop.reason == "finished":
        return RequeueDecision(0)
    if stop is not None and stop.reason == "interrupted":
        if stop.cause == StopReason.TERM.journal_text and not preempted and not time_limit_hit:
            return RequeueDecision(ExitCode.INTERRUPTED)  # a person cancelled it
        if preempted or stop.cause == StopReason.USR1.journal_text:
            return RequeueDecision(ExitCode.INTERRUPTED, requeue_cause="preemption")
        return _requeue_unless_stuck(events, step, ExitCode.INTERRUPTED, "time limit", LIMIT_REACHED)
    if stop is not None and not stop.retry:
        return RequeueDecision(ExitCode.USER_ERROR if stop.user_error else ExitCode.FAILED)
    if exit_code == ExitCode.USER_ERROR:  # a mistake found before the journal was open
        return RequeueDecision(ExitCode.USER_ERROR)
    if preempted:  # without a grace time its tasks are killed before they can save
        return RequeueDecision(ExitCode.FAILED, requeue_cause="preemption")
    if time_limit_hit or past_time_limit:  # unsaved: a rank hung
        return _requeue_unless_stuck(events, step, ExitCode.FAILED, "time limit", LIMIT_REACHED)
    failure = start_failure(events, began, step, first_end or Failure())
    return _after_a_crash(events, exit_code, step, failure, job or sick_nodes.JobNodes())


def start_failure(events: list[Event], began: float, step: int, first_end: Failure) -> Failure:
    """Return how this start failed: what the journal says, completed by what srun says."""
    stop = _stop(events, began)
    start = next((event for event in reversed(events) if isinstance(event, StartEvent) and event.t >= began), None)
    failure = stop.failure if stop is not None else Failure()
    # No rank was left to record it, or none saw it.
    if failure.exception is None and failure.cause is None and failure.node in (None, first_end.node):
        failure = replace(failure, **first_end.fields())
    if start is None:
        return replace(failure, step=step, before_first_step=True)
    return replace(failure, before_first_step=failure.step == start.step)


def _stop(events: list[Event], began: float) -> StopEvent | None:
    """Return how the journal says that this start ended; None if it does not."""
    last = JournalState.of(events).last
    return last if isinstance(last, StopEvent) and last.t >= began else None


def _after_a_crash(
    events: list[Event], exit_code: int, step: int, failure: Failure, job: sick_nodes.JobNodes
) -> RequeueDecision:
    earlier = [event.failure for event in _requeues_since_given_up(events) if event.failure is not None]
    excluded_count = sum(isinstance(event, ExcludeEvent) for event in events)
    exclude_reason = sick_nodes.exclusion_reason(failure, earlier)
    objection = job.exclusion_objection(str(failure.node), excluded_count) if exclude_reason else None
    no_message = f"srun ended with {exit_code} and the tasks said nothing"
    message = known_causes.describe_failure(failure.fields()) if failure.message is not None else no_message
    if not known_causes.retry_can_help(failure.fields()):
        return RequeueDecision(ExitCode.FAILED, given_up=f"given up: {message}", failure=failure)
    if repeated := sick_nodes.repeated_failure(failure, earlier, same_node=not exclude_reason or objection is not None):
        nodes = " and ".join(dict.fromkeys(f.node for f in (repeated, failure) if f.node))
        given_up = f"given up: the same failure at step {failure.step} twice, on {nodes}: {message}"
        return RequeueDecision(ExitCode.FAILED, given_up=given_up, failure=failure)
    if exclude_reason and not objection:
        restarts = _restarts_without_progress(events, step)
        return RequeueDecision(
            ExitCode.FAILED, "crash", without_progress=restarts, exclude_reason=exclude_reason, failure=failure
        )
    if exclude_reason:
        message += f" ({failure.node} is not left out: {objection})"
    return replace(_requeue_unless_stuck(events, step, ExitCode.FAILED, "crash", message), failure=failure)


def _requeue_unless_stuck(events: list[Event], step: int, exit_code: int, cause: str, reason: str) -> RequeueDecision:
    """Requeue for ``cause``, unless the run was restarted too often without progress."""
    restarts = _restarts_without_progress(events, step)
    if restarts >= MAX_RESTARTS_WITHOUT_PROGRESS:
        given_up = f"given up: {restarts} restarts without progress at step {step}; the last ended with: {reason}"
        return RequeueDecision(ExitCode.FAILED, given_up=given_up, without_progress=restarts)
    return RequeueDecision(exit_code, requeue_cause=cause, without_progress=restarts + 1)


def _requeues_since_given_up(events: list[Event]) -> list[RequeueEvent]:
    """Return the requeues since the run was last given up, oldest first: a person's resume starts a new count."""
    requeues: list[RequeueEvent] = []
    for event in events:
        if isinstance(event, RequeueEvent):
            requeues.append(event)
        elif isinstance(event, StopEvent) and event.given_up:
            requeues = []
    return requeues


def _restarts_without_progress(events: list[Event], step: int) -> int:
    """Count the restarts since the run last made progress. Those that excluded a node at fault do not count."""
    count = 0
    for requeue in reversed(_requeues_since_given_up(events)):
        if requeue.step != step:
            break
        count += requeue.cause in COUNTED_CAUSES and not requeue.without_node
    return count


def finish_job(
    run_dir: str,
    exit_code: int,
    *,
    preempted: bool,
    time_limit_hit: bool = False,
    slurm_output: str = "",
    exclude: Path | None = None,
    task: int | None = None,
) -> int:
    """Decide what becomes of a job, and record it. Returns ``ExitCode.REQUEUE``, or the batch script's exit code.

    Args:
        slurm_output: What SLURM prints about the job and its partition's nodes; "" if it was not asked.
        exclude: The file to write the nodes to that SLURM is to exclude.
        task: The number of this run's task in a job of several runs, None in a job of its own.

    Raises:
        UserError: the run's record is damaged.
    """
    run = Run.open(run_dir)
    if (other := run.successor()) is not None:
        print(f"runyard: run {run.id} is written by {other}: this job is not requeued", file=sys.stderr, flush=True)
        return exit_code or ExitCode.FAILED
    step, evaluated = newest_step(run), newest_evaluated(run)
    # An evaluation that is longer than the time limit makes progress, too, though its step stays the same.
    events = [
        event
        for event in read_events(run.journal_path)
        if not (evaluated and isinstance(event, RequeueEvent) and event.evaluated != evaluated)
    ]
    began, end, log_began = (os.environ.get(name, "") for name in ("RUNYARD_BEGAN", "SLURM_JOB_END_TIME", LOG_BEGAN))
    past_time_limit = end.isdigit() and time.time() >= int(end) - HANG_EXIT_MARGIN_S
    first_end = None
    if log_began:
        first_end = parse_failure(task_ends.first_task_exit(job_log(), int(log_began), task))
        if task is not None:
            exit_code = task_ends.exit_code_of(task, job_log(), int(log_began), exit_code)
    job = sick_nodes.JobNodes.read(slurm_output)
    verdict = decide_requeue(
        events, exit_code, step, preempted=preempted, time_limit_hit=time_limit_hit, past_time_limit=past_time_limit,
        began=float(began or 0), first_end=first_end, job=job,
    )  # fmt: skip
    if task is not None and pack.has_left(RunSummary(run.path), job_id()):  # such as cancelled, and then preempted
        verdict = replace(verdict, requeue_cause=None)
    run_journal = Journal(run.journal_path)
    if verdict.given_up:
        fields = replace(verdict.failure, message=verdict.given_up, before_first_step=False).fields()
        _write_or_report(run_journal, "stop", reason="failed", user_error=False, retry=False, given_up=True, **fields)
        print(f"runyard: {verdict.given_up}", file=sys.stderr, flush=True)
    if verdict.requeue_cause is None or not (run.config.cluster.requeue or chain.job_follows()):
        message = verdict.failure.message or f"srun ended with {exit_code}"
        tell_end(run, message, given_up=verdict.given_up is not None)
        return verdict.exit_code
    row: Row = {"cause": verdict.requeue_cause, "step": step, "without_progress": verdict.without_progress}
    row |= {"evaluated": evaluated} if evaluated else {}
    row |= {"failure": fields} if (fields := verdict.failure.fields()) else {}
    if verdict.exclude_reason and exclude is not None:
        row["without_node"] = node = str(verdict.failure.node)
        exclude.write_text(job.excluding(node))
        _write_or_report(
            run_journal, "exclude", node=node, why=verdict.exclude_reason, job=os.environ.get("SLURM_JOB_ID")
        )
        print(f"runyard: {node} is left out from now on: {verdict.exclude_reason}", file=sys.stderr, flush=True)
    _write_or_report(run_journal, "requeue", **row)
    where = "the next job of the chain is" if chain.job_follows() else "back into the queue,"
    print(f"runyard: {verdict.requeue_cause}: {where} to go on at step {step}", flush=True)
    return ExitCode.REQUEUE


def _write_or_report(run_journal: Journal, event: str, **fields: object) -> None:
    """Write a journal row. If the disk is full, print that: the decision holds all the same."""
    try:
        run_journal.write(event, **fields)
    except OSError as error:
        print(f"runyard: {run_journal.path}: {error.strerror}: {event} not written down", file=sys.stderr, flush=True)


def record_requeue_refusal(run_dir: str, exit_code: int, reason: str) -> int:
    """Record why SLURM refused to requeue this job, and how to continue. Returns the exit code."""
    run = Run.open(run_dir)
    reason = " ".join(reason.split())
    message = f"this job could not be requeued ({reason}); continue with: runyard resume {run.cli_reference}"
    if "disabled" in reason:
        message += ", with cluster.requeue=false cluster.chain=5 for five jobs, one after another"
    _write_or_report(Journal(run.journal_path), "warning", message=message)
    print(f"runyard: {message}", file=sys.stderr, flush=True)
    tell_end(run, message, given_up=False)
    return exit_code or ExitCode.FAILED


def record_cancellation(run_dir: str, exit_code: int) -> int:
    """Tell that SLURM ended this job before it could save. Returns the exit code."""
    run, message = Run.open(run_dir), "SLURM ended the job before it could save"
    notify_end(run, message, "cancelled")
    began = float(os.environ.get("RUNYARD_BEGAN") or 0)
    if chain.job_follows() and _stop(read_events(run.journal_path), began) is None:
        cause = StopReason.TERM.journal_text  # by which the chain's other jobs know
        _write_or_report(Journal(run.journal_path), "stop", reason="interrupted", message=message, cause=cause)
    return exit_code


def end_of_run(run_dir: str, code: int, ending: str, rest: list[str], slurm_output: str, task: int | None) -> int:
    """Do what ``ending`` says for one run. Returns the exit code, of a run that the job had left before 0."""
    try:
        if task is not None:
            run = RunSummary(Path(run_dir))
            began, end = float(os.environ.get("RUNYARD_BEGAN") or 0), run.recorded_end
            if pack.has_left(run, job_id()) and not (end and end.t >= began):
                return 0
            if ending == "refused" and not isinstance(run.journal.last, RequeueEvent):
                return 0  # this one has ended
        if ending == "cancelled":
            return record_cancellation(run_dir, code)
        if ending == "refused":
            return record_requeue_refusal(run_dir, code, *rest)
        flags = {"preempted": ending == "1", "time_limit_hit": ending == "limit"}
        exclude_file = Path(rest[0]) if rest else None
        return finish_job(run_dir, code, **flags, slurm_output=slurm_output, exclude=exclude_file, task=task)
    except UserError as error:  # another start would find the same damage
        print(f"runyard: {error}", file=sys.stderr, flush=True)
        return ExitCode.USER_ERROR
    except Exception:
        if task is None:
            raise
        traceback.print_exc()  # the other runs of this job have ends of their own
        return ExitCode.FAILED


def job_log() -> Path:
    """Return the job's error log, which this process writes to."""
    return Path(os.path.realpath("/proc/self/fd/2"))


def job_id() -> str:
    """Return the id of this job, as ``12`` or ``12_3``."""
    return str(LeaseHolder.this_process(os.environ).job)


@contextlib.contextmanager
def printing_to_log_of(task: int | None) -> Iterator[None]:
    """Print what is said within the block to the logs of one run's task, if this job has several runs."""
    if task is None or (log := task_ends.log_of_task(job_log(), task)) == job_log():
        yield
        return
    with (
        open(log, "a") as err,
        open(log.with_suffix(".out"), "a") as out,
        contextlib.redirect_stderr(err),
        contextlib.redirect_stdout(out),
    ):
        yield


def newest_step(run: Run) -> int:
    """Return the step of the newest checkpoint that has a manifest, or 0. Its content is verified when it is read."""
    names = [p.parent.name.removeprefix("step_") for p in run.checkpoints.glob("step_*/manifest.json")]
    return max((int(step) for step in names if step.isdigit()), default=0)


def newest_evaluated(run: Run) -> int:
    """Return how many images of an unfinished evaluation the newest checkpoint holds."""
    try:
        manifest = json.loads(read_regular(run.checkpoints / f"step_{newest_step(run):08d}" / "manifest.json"))
        return int(manifest.get("evaluated", 0))
    except (OSError, ValueError, TypeError, AttributeError):
        return 0


if __name__ == "__main__":
    runs, code, ending, *rest = sys.argv[1:]
    slurm_output = "" if ending in ("cancelled", "refused") or sys.stdin.isatty() else sys.stdin.read()
    run_dirs, codes = runs.split(RUN_SEPARATOR), []
    is_pack = len(run_dirs) > 1 or task_ends.log_of_task(job_log(), 0) != job_log()
    for task, run_dir in enumerate(run_dirs):
        its_task = task if is_pack else None
        with printing_to_log_of(its_task):
            codes.append(end_of_run(run_dir, int(code), ending, rest, slurm_output, its_task))
    sys.exit(ExitCode.REQUEUE if ExitCode.REQUEUE in codes else max(codes))
