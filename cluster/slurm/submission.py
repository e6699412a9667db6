"""A run's submissions: serialized by a lock, recorded before sbatch is called and again after it has answered.

So a command may die at any moment and its job is still found: the job's script, whose name only this submission has,
lies in the run's own directory, and SLURM says of each job what it runs (``queue.JobInfo.run``).
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from runyard.cluster.slurm import pack, queue
from runyard.cluster.slurm.queue import JobAnswer, JobInfo
from runyard.errors import UserError
from runyard.file_lock import exclusive_lock
from runyard.files import file_fix
from runyard.ownership import foreign_owner
from runyard.runs.events import StartEvent
from runyard.runs.record import JobRecord, RunRecord, editing_record
from runyard.runs.run import Run
from runyard.runs.summary import RunSummary
from runyard.slurm_client import RETRY_TIMEOUT_S

LOCK = ".submission-lock"
LOCK_TIMEOUT_S = 2 * RETRY_TIMEOUT_S  # for another command, which itself may wait that long for SLURM


def script_name(token: str) -> str:
    """Return the name of a submission's batch script."""
    return f"submission_{token}.sh"


@contextlib.contextmanager
def submission_lock(run: Path, reference: str) -> Iterator[int | None]:
    """Within the block no other command submits a job of ``run``.

    Yields the open lock file, which sbatch is to hold as well; None on a file system without locks.

    Raises:
        UserError: another command has held the lock for minutes, or the directory cannot be written.
    """

    def on_wait() -> None:
        print(f"runyard: another command is submitting run {reference}: waiting for it", file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(exclusive_lock(run / LOCK, LOCK_TIMEOUT_S, on_wait))
        except TimeoutError:
            raise UserError(
                f"another command has been submitting run {reference} for {LOCK_TIMEOUT_S:g} s",
                f"see: runyard status {reference}",
            ) from None
        except OSError as error:
            raise UserError(f"run {reference}: {run / LOCK}: {error.strerror}", file_fix(error)) from None
        yield lock


def record_submission(run: Run, token: str, job: JobRecord) -> None:
    """Record that ``job``, which has no id yet, is being submitted."""
    with run.editing_record() as record:
        record["submission"] = {**job, "token": token}


def finish_submission(run: Run, job_id: str | None) -> None:
    """Record the result of the submission: the job's id, of a chain the number of any of its jobs; None for no job."""
    with run.editing_record() as record:
        _conclude(record, job_id)


def _conclude(record: RunRecord, job_id: str | None) -> None:
    job = record.pop("submission", None)
    if job is None or job_id is None:
        return
    ids = [job_id]
    if (count := job.pop("chain", 1)) > 1:
        ids = [f"{job_id.partition('_')[0]}_{k}" for k in range(count)]
    known = [recorded["id"] for recorded in record["jobs"]]
    record["jobs"] += [{**job, "id": number} for number in ids if number not in known]


def require_first_job(run: Run, job_id: str) -> None:
    """Refuse a job that is not the first of ``run``: without locks two commands may each have submitted one.

    Raises:
        UserError: another job was first.
    """
    jobs = pack.jobs_of(RunSummary(run.path), queue.all_user_jobs([job_id], RETRY_TIMEOUT_S))
    first = next((job for job in reversed(jobs) if job.active), None)
    if first is not None and first.id.partition("_")[0] != job_id:  # no element: this is of one run
        raise UserError(
            f"run {run.id} already has job {first.id}, from another command", f"see: runyard status {run.cli_reference}"
        )


def resolve_pending(run: Path, squeue_answer: JobAnswer, starts: list[StartEvent], *, held: bool = False) -> None:
    """Finish recording a submission whose command was cut off, by squeue's answer and the starts of ``run``.

    A submission whose lock another command holds is left alone, as it is in progress; so is another user's run, and
    one that cannot be written. ``held`` says that the caller holds the lock.
    """
    if squeue_answer.error is not None or foreign_owner(run) is not None:
        return
    with contextlib.suppress(TimeoutError, OSError), contextlib.ExitStack() as stack:
        locked = held or stack.enter_context(exclusive_lock(run / LOCK, wait_s=0)) is not None
        with editing_record(run) as record:
            pending = record.get("submission")
            if pending is None or (not locked and time.time() - pending["submitted"] < LOCK_TIMEOUT_S):
                return
            _conclude(record, _submitted_job(pending, squeue_answer.jobs_of(run), starts, record["jobs"]))


def _submitted_job(
    pending: JobRecord, jobs: list[JobInfo], starts: list[StartEvent], recorded: list[JobRecord]
) -> str | None:
    """Return the submission's job, of those that SLURM knows or that trained since; None if there is none."""
    for job in reversed(jobs):  # the oldest, if SLURM took the script twice
        if job.command.endswith(f"/{script_name(pending['token'])}"):
            return job.id
    known = {job["id"] for job in recorded}
    started = [start.job_id for start in starts if start.t >= pending["submitted"] and start.job_id]
    return next((job_id for job_id in started if job_id not in known), None)
