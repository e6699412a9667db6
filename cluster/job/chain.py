"""A chain: several jobs of one run on the queue at once, for clusters without requeueing (``cluster.chain``).

They are an array of which one runs at a time. Each goes on at the checkpoint of the one before it. Once the run is
over, ``python -m runyard.cluster.job.chain RUN`` exits with 0 and says why: slurm/requeue.sh then cancels those that
are left, and one that starts all the same ends at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from runyard.errors import ExitCode, UserError
from runyard.runs.events import StopEvent
from runyard.runs.record import JobRecord
from runyard.runs.summary import RunSummary

VARIABLE = "RUNYARD_CHAIN"  # the array's number, from the batch script: a job that was submitted in one has another


def job_follows() -> bool:
    """Return whether this job is of a chain, and not its last."""
    env = os.environ
    is_chain = VARIABLE in env and env[VARIABLE] == env.get("SLURM_ARRAY_JOB_ID")
    return is_chain and int(env["SLURM_ARRAY_TASK_ID"]) < int(env["SLURM_ARRAY_TASK_MAX"])


def final_stop(run: RunSummary) -> StopEvent | None:
    """Return the end of the run after which the chain does not go on; None if there is none since it was submitted.

    A job after which it goes on writes a requeue after its stop, or nothing more if its node died.
    """
    submitted: JobRecord = run.pending_submission or run.job  # the command that submitted it may have been cut off
    end = run.journal.last
    is_new = isinstance(end, StopEvent) and (end.t >= submitted.get("submitted", 0) or end.reason == "finished")
    return end if isinstance(end, StopEvent) and is_new and end.is_final else None


if __name__ == "__main__":
    try:
        run = RunSummary(Path(sys.argv[1]))
        if (end := final_stop(run)) is None:
            sys.exit(ExitCode.FAILED)
        how = {"finished": "is finished", "interrupted": "was cancelled"}.get(end.reason, f"failed: {end.message}")
        print(f"runyard: run {run.id} {how}: this job of its chain ends at once", flush=True)
    except UserError as error:  # the tasks find it, too
        print(f"runyard: {error}", file=sys.stderr, flush=True)
        sys.exit(ExitCode.USER_ERROR)
