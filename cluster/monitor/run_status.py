"""How runs stand: SLURM's word for what waits and runs, the journal's for how it ended, in words for a person."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runyard import known_causes
from runyard.cluster.slurm import job_states, queue
from runyard.cluster.slurm.queue import Answer, Job
from runyard.cluster.slurm.submission import settle
from runyard.errors import UserError
from runyard.runs.narrative import straggler
from runyard.runs.summary import Glance, glance

SKEW_S = 5  # by which the clocks of a cluster's nodes may differ
GOING = ("waiting", "starting", "running", "ending")
REQUEUED = {"preemption": "preempted", "crash": "crashed", "time limit": "time limit reached"}
SCRIPT_KILLED = ("RaisedSignal", "JobLaunchFailure")  # SLURM says the one or the other
CAUSES = {"TERM": "cancelled", "USR2": "by SLURM's signal", "time limit": "time limit"}


@dataclass(frozen=True)
class Standing:
    """Where one run stands.

    Attributes:
        state: new, waiting, starting, running, ending, finished, stopped, failed, died, cancelled or unknown.
        words: The state and its reason, in words, with what to do about it.
        reason: SLURM's code for why it waits, or the cause of its end; None where there is none.
        job: The job that the words are about, as SLURM knows it; None where it knows none.
        nodes: Names of the nodes it runs on, or ran on last.
        problem: Why SLURM could not be asked, where that leaves the state unknown.
    """

    run: Glance
    state: str
    words: str
    reason: str | None = None
    job: Job | None = None
    nodes: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def going(self) -> bool:
        """It may still come further by itself."""
        return self.state in GOING

    @property
    def numbers(self) -> dict[str, Any]:
        """Step, accuracy and speed: raw values, None where unknown."""
        run, now = self.run, self.run.progress
        epochs, final = run.epochs, next((r for r in reversed(run.rows) if r["event"] == "final"), {})
        measure = "val_top1" if any(row.get("val_top1") is not None for row in epochs) else "test_top1"
        top1 = [row[measure] for row in epochs if row.get(measure) is not None]
        newest = epochs[-1] if epochs else {}
        live = now if self.state == "running" else {}
        best = final.get("top1_best")
        steps = [step for step in (now.get("step"), newest.get("step"), run.saved_step) if step is not None]
        return {
            "step": max(steps, default=None),
            "steps": now.get("steps"),
            "epoch": newest.get("epoch", 0),
            "epochs": now.get("epochs"),
            "top1_last": top1[-1] if top1 else None,
            "top1_best": best if best is not None else max(top1, default=None),
            "images_per_s": live.get("images_per_s", newest.get("images_per_s")),
            "data_wait_pct": live.get("data_wait_pct", newest.get("data_wait_pct")),
            "slowest_rank": newest.get("slowest_rank"),
            "slowest_node": newest.get("slowest_node"),
            "slowest_to_median": newest.get("slowest_to_median"),
            "restarts": max(0, len(run.starts) - 1),
            "nodes": len(self.nodes) or run.job.get("nodes"),
            "eta_s": live.get("eta_s"),
        }


def ask(
    runs: Sequence[Glance], *, wait_s: float = 0.0, held: bool = False
) -> tuple[list[Glance], Answer, Answer]:
    """squeue and sacct about all of ``runs`` at once, and neither where none is needed.

    The runs are given back as they are after squeue answered: a job that ended in between has said so by then, and a
    submission that was cut off has its job.

    Args:
        wait_s: How long to ask again while the controller is away.
        held: Who asks holds these runs' locks (``runyard.cluster.slurm.submission``).
    """
    asked = [run for run in runs if not run.settled and (run.on_slurm or run.submission or not run.record["jobs"])]
    waiting = queue.every([n for run in asked for n in run.slurm_jobs], wait_s) if asked else Answer({})
    again: dict[Path, Glance] = {}
    for run in asked:
        with contextlib.suppress(UserError):  # gone since: as it was a moment ago
            if run.submission:
                settle(run.path, waiting, run.starts, held=held)
            again[run.path] = glance(run.path)
    unsaid = [run for run in again.values() if _needs_accounting(run, waiting)]
    now = [again.get(run.path, run) for run in runs]
    return now, waiting, queue.sacct(run.slurm_jobs[-1] for run in unsaid if run.slurm_jobs)


def standing(run: Glance, *, wait_s: float = 0.0, held: bool = False) -> Standing:
    """How one run stands now; see ``ask``."""
    (now,), waiting, ended = ask([run], wait_s=wait_s, held=held)
    return stand(now, waiting, ended, time.time())


def _needs_accounting(run: Glance, waiting: Answer) -> bool:
    """The journal does not say how its last attempt ended: it vanished, or SLURM itself put it back into the queue."""
    job = own(run, waiting)
    if job is None or not job.active:
        return waiting.problem is None and not run.concluded
    return job.waits and bool(run.starts) and run.last["event"] != "requeue"


def stand(run: Glance, waiting: Answer, ended: Answer, now: float) -> Standing:
    """How ``run`` stands, by what squeue and sacct said at unix seconds ``now``."""
    job = own(run, waiting)
    here = queue.hosts(str(next(iter(reversed(run.starts)), {}).get("nodelist") or ""))
    if run.settled:
        return Standing(run, "finished", "finished", nodes=here)
    if job is not None and job.waits:
        return _waiting(run, job, accounted(run, ended), now)
    if job is not None and job.runs:
        return _running(run, job, now)
    if not run.on_slurm and (pid := run.local_process()) is not None:
        began = any(row["t"] >= run.job.get("submitted", 0) for row in run.starts)
        state = "ending" if run.concluded else "running" if began else "starting"
        words = f"{state} here, process {pid}{_slow(run, state)}"
        return Standing(run, state, words, nodes=(os.uname().nodename,))
    if run.concluded:
        return _concluded(run, here, job)
    if waiting.problem and (run.on_slurm or run.submission):
        return Standing(run, "unknown", f"SLURM was not asked: {waiting.problem}", nodes=here, problem=waiting.problem)
    if job is None and (writer := run.writer()) is not None:  # of another machine, or a job that SLURM hides from us
        return Standing(run, "running", f"running: {writer}", nodes=here)
    if not run.job and not run.starts:
        words = f"not submitted: runyard resume {run.reference}"
        if run.submission:
            words = f"its submission is under way, or was cut off: see `squeue`, or runyard resume {run.reference}"
        return Standing(run, "new", words)
    if job is None and ended.problem and run.on_slurm:
        words = f"its job is gone, and nobody says how ({ended.problem}); go on with: runyard resume {run.reference}"
        return Standing(run, "unknown", words, nodes=here, problem=ended.problem)
    gone = accounted(run, ended) or job  # accounting knows more of how, squeue of why
    return _vanished(run, replace(gone, reason=job.reason) if gone and job else gone, here)


def _waiting(run: Glance, job: Job, accounted: Job | None, now: float) -> Standing:
    code, meaning = job_states.why_it_waits(job)
    again = ""
    if run.starts:
        cause = job_states.why_it_goes_on(accounted) if accounted else None
        if run.last["event"] == "requeue":
            cause = REQUEUED.get(run.last["cause"], run.last["cause"])
        step = run.last.get("step") if run.last["event"] == "requeue" else run.saved_step
        where = f" at step {step}" if step else " from the beginning" if step == 0 else ""
        again = f"{cause + ', ' if cause else ''}waiting to go on{where} "
    words = f"{again or 'waiting '}{_left_out(run)}({code}): {meaning}"
    if job.start is not None and job.start > now:
        words += f"; expected to start {job_states.clock_time(job.start, now)}"
    return Standing(run, "waiting", words, code, job)


def _running(run: Glance, job: Job, now: float) -> Standing:
    since = job.start if job.start is not None else now - (job.elapsed_s or 0)
    on, last = f"on {job_states.places(job.nodes)}", run.last
    heard = last["event"] != "" and last["t"] >= since - SKEW_S
    state, words = "running" if heard else "starting", ""
    if heard and last["event"] == "requeue":
        state, words = "ending", f"{REQUEUED.get(last['cause'], last['cause'])}: about to wait again"
    elif heard and last["event"] == "stop":
        failed = last.get("reason") == "failed"
        why = known_causes.in_words(last) if failed else last.get("message") or last.get("reason")
        state, words = "ending", f"ending {on}: {why}"
    elif job.state == "SUSPENDED":
        words = f"suspended {on} by SLURM: it goes on by itself"
    ends = None if job.left_s is None else since + job.left_s + (job.elapsed_s or 0)
    left = "" if ends is None else f", {job_states.span(ends - now)} left"
    words = words or f"{state} {on} for {job_states.span(now - since)}{left}"
    if state != "ending" and (without := _left_out(run)):
        words += f", {without.strip()}"
    return Standing(run, state, words + _slow(run, state), None, job, job.nodes)


def _slow(run: Glance, state: str) -> str:
    """Which rank the others wait for, as far as the newest epoch says."""
    words = straggler(run.epochs[-1]) if run.epochs and state == "running" else None
    return f"; {words}" if words else ""


def _left_out(run: Glance) -> str:
    """The nodes that its newest job leaves out since starts failed there, and why the last one was."""
    rows = [row for row in run.rows if row["event"] == "exclude" and row["t"] >= run.job.get("submitted", 0)]
    nodes = ", ".join(dict.fromkeys(str(row.get("node")) for row in rows))
    return f"without {nodes} ({rows[-1].get('why')}) " if rows else ""


def _concluded(run: Glance, here: tuple[str, ...], job: Job | None) -> Standing:
    last, on = run.last, f"go on with: runyard resume {run.reference}"
    message = str(last.get("message") or "")
    if last.get("reason") == "interrupted":
        cause = CAUSES.get(str(last.get("cause")), "")
        if job is not None and job.reason.startswith(SCRIPT_KILLED):  # its tasks were then told to end, by no person
            cause = f"its batch script was killed: {job.reason}"
        step = run.saved_step
        at = f"stopped at step {step}, saved{run.saved_doubt}" if step is not None else "stopped before the first step"
        words = f"{at}{f' ({message or cause})' if message or cause else ''}; {on}"
        return Standing(run, "stopped", words, last.get("cause"), nodes=here)
    if last.get("reason") == "finished":
        return Standing(run, "finished", "finished", nodes=here)
    why = message if last.get("given_up") else known_causes.in_words(last)
    return Standing(run, "failed", f"failed: {why}", last.get("cause"), nodes=here)


def _vanished(run: Glance, job: Job | None, here: tuple[str, ...]) -> Standing:
    """Its job is gone and the journal has no end of it: what SLURM says instead, or nobody does."""
    on = f"go on with: runyard resume {run.reference}"
    step = f", saved at step {run.saved_step}{run.saved_doubt}" if run.saved_step is not None else ""
    why = job_states.how_it_ended(job) if job else ""
    if job is not None and job.state == "CANCELLED":
        waited = run.last["event"] != "start"
        reason = job.reason if job.reason == "DependencyNeverSatisfied" else None
        why = "cancelled: the job it was to follow failed" if reason else why
        return Standing(run, "cancelled", f"{why}{' while it waited' if waited else ''}{step}; {on}", reason, job, here)
    said = run.last_words()
    ended = f"its batch script ended: {known_causes.end_in_words(job.end)}" if job is not None and job.end else ""
    why = why or "died without a word" + (f": {said or ended}" if said or ended else "")
    return Standing(run, "died", f"{why}{step}; {on}", job.state if job else None, job, here)


def own(run: Glance, waiting: Answer) -> Job | None:
    """The job of this run that says most, as squeue knows it: one that has nodes, else one that waits, else the newest.

    Which are the run's SLURM says, and not the run's record: numbers are used again, and a record may be another's.
    """
    jobs = waiting.of(run.path)
    first = next((job for job in jobs if job.runs), None) or next((job for job in jobs if job.waits), None)
    return first or next((job for job in jobs if not run.slurm_jobs or job.id == run.slurm_jobs[-1]), None)


def accounted(run: Glance, ended: Answer) -> Job | None:
    """The run's newest job as accounting has it, unless that number is a job of another name."""
    names = {run.id, run.record.get("sweep"), *(job.get("name") for job in run.record["jobs"])}
    noted = [str(job["id"]) for job in run.record["jobs"]]
    job = ended.jobs.get(run.slurm_jobs[-1]) if run.slurm_jobs else None
    return job if job is not None and (job.name in names or job.id not in noted) else None


def shortest(ids: Iterable[str], among: Sequence[str], least: int = 15) -> dict[str, str]:
    """The beginnings of ``ids`` that name no other of ``among``; whole those that are not there."""
    ordered = sorted(set(among))
    place = {name: k for k, name in enumerate(ordered)}
    short = {}
    for name in ids:
        if (k := place.get(name)) is None:
            short[name] = name
            continue
        beside = [ordered[j] for j in (k - 1, k + 1) if 0 <= j < len(ordered)]
        length = max([least, *(_common(name, other) + 1 for other in beside)])
        short[name] = name[:length]
    return short


def _common(a: str, b: str) -> int:
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
