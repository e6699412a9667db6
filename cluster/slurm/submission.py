"""A run's submissions: one at a time, written down before SLURM is asked, and again once it has answered.

So a command may die at any moment and its job is still found: the script that it runs, of a name that only this
submission has, lies in the run's own directory, and SLURM says of each job what it runs (``queue.Job.run``).
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runyard.cluster.slurm.queue import JobAnswer, JobInfo
from runyard.errors import UserError
from runyard.file_lock import exclusive_lock
from runyard.runs.journal import Row
from runyard.runs.run import Run, editing_record
from runyard.slurm_client import RETRY_TIMEOUT_S

LOCK = ".submission-lock"
LOCK_TIMEOUT_S = 2 * RETRY_TIMEOUT_S  # for another command, which may itself wait for SLURM that long


def script_name(token: str) -> str:
    """Of the batch script that a submission makes."""
    return f"submission_{token}.sh"


@contextlib.contextmanager
def submission_lock(run: Path, reference: str) -> Iterator[int | None]:
    """Within the block no other command submits a job of ``run``. Gives what sbatch is to hold (``alone``).

    Raises:
        UserError: another one has been at it for minutes, or the directory cannot be written.
    """

    def say() -> None:
        print(f"runyard: another command is submitting run {reference}: waiting for it", file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(exclusive_lock(run / LOCK, LOCK_TIMEOUT_S, say))
        except TimeoutError:
            raise UserError(
                f"another command has been submitting run {reference} for {LOCK_TIMEOUT_S:g} s; "
                f"see: runyard status {reference}"
            ) from None
        except OSError as error:
            raise UserError(f"run {reference}: {run / LOCK}: {error.strerror}; mend its permissions") from None
        yield held


def record_submission(run: Run, token: str, job: dict[str, Any]) -> None:
    """Write down that ``job``, which has no id yet, is being submitted."""
    with run.editing_record() as record:
        record["submission"] = job | {"token": token}


def finish_submission(run: Run, job_id: str | None) -> None:
    """Write down what came of it: this job, or nothing."""
    with run.editing_record() as record:
        _conclude(record, job_id)


def _conclude(record: dict[str, Any], job_id: str | None) -> None:
    job = record.pop("submission", None)
    if job is not None and job_id is not None and job_id not in [noted["id"] for noted in record["jobs"]]:
        record["jobs"].append(job | {"id": job_id})


def resolve_pending(run: Path, waiting: JobAnswer, starts: list[Row], *, held: bool = False) -> None:
    """Conclude a submission whose command was cut off, by what squeue said and which jobs have begun training ``run``.

    One that is under way, as its lock tells, is left alone, unless it is ``held`` by who asks; so is a run that is not
    ours to write.
    """
    if waiting.error is not None:
        return
    with contextlib.suppress(TimeoutError, OSError), contextlib.ExitStack() as stack:
        locked = held or stack.enter_context(exclusive_lock(run / LOCK, wait_s=0)) is not None
        with editing_record(run) as record:
            pending = record.get("submission")
            if pending is None or (not locked and time.time() - pending["submitted"] < LOCK_TIMEOUT_S):
                return
            _conclude(record, _submitted_job(pending, waiting.jobs_of(run), starts, record["jobs"]))


def _submitted_job(
    pending: dict[str, Any], jobs: list[JobInfo], starts: list[Row], noted: list[dict[str, Any]]
) -> str | None:
    """The job that a submission came to, of those that SLURM knows or that trained since; None: it came to none."""
    for job in reversed(jobs):  # the oldest, where sbatch was heard twice
        if job.command.endswith(f"/{script_name(pending['token'])}"):
            return job.id
    known = {job["id"] for job in noted}
    began = [str(row["job_id"]) for row in starts if row["t"] >= pending["submitted"] and row.get("job_id")]
    return next((job_id for job_id in began if job_id not in known), None)
