"""A pack: several small runs side by side in one job, each a task of its own (``cluster.runs_per_task``).

SLURM knows only the job. So a run that is over leaves the job while the others go on, and also the job's later starts;
and a single run is asked to stop by a file, as SLURM can signal only all tasks of a step.
"""

from __future__ import annotations

from pathlib import Path

from runyard.cluster.slurm.queue import JobAnswer, JobInfo
from runyard.runs.summary import RunSummary


def cancel_file(run: Path, job: str) -> Path:
    """Return the file that asks the task of ``run`` in this job to save and stop, and the job not to train it again."""
    return run / "slurm" / f"cancel-{job}"


def has_left(run: RunSummary, job: str) -> bool:
    """Return whether this job does not train ``run`` any more: it finished, failed for good, was cancelled, or moved.

    What the job is to repeat by itself has not left it, as after a crash or a preemption.
    """
    if job in [recorded["id"] for recorded in run.record["jobs"][:-1]]:  # it was resumed, in a job of its own
        return True
    end = run.recorded_end
    return end is not None and (not end.may_be_requeued or cancel_file(run.path, job).exists())


def jobs_of(run: RunSummary, answer: JobAnswer) -> list[JobInfo]:
    """Return the jobs of ``run``, newest first, without packs that it has left."""
    return [job for job in answer.jobs_of(run.path) if len(job.runs) == 1 or not has_left(run, job.id)]
