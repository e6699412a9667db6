"""Explains SLURM's job states and reason codes, and what to do about them."""

from __future__ import annotations

import re
import time

from runyard.cluster.slurm.queue import JobInfo

RESUBMIT_WITH = "`runyard cancel` it, then `runyard resume` it with"  # a setting follows
PENDING_REASONS = {
    "None": "SLURM has not looked at it yet",
    "WaitingForScheduling": "SLURM has not looked at it yet",
    "Priority": "jobs with higher priority come first",
    "Resources": "it is next, once enough nodes, CPUs, memory or GPUs are free",
    "Dependency": "another job has to end first",
    "DependencyNeverSatisfied": "the job it was to follow has failed, so it never starts: fix that one, and "
    "`runyard cancel` this one",
    "BeginTime": "its time to start has not come; a job that was put back into the queue waits about two minutes",
    "Cleaning": "what is left of its last attempt is being cleared away",
    "JobArrayTaskLimit": "the sweep already runs as many points at a time as it may (cluster.array_parallelism), or "
    "the chain its one job",
    "JobHeldUser": "held by its owner: `scontrol release {id}` lets it go",
    "JobHeldAdmin": "held by an administrator, or by SLURM after it could not be started: ask them; "
    "`scontrol show job {id}` may say why",
    "JobLaunchFailure": "a node could not start it: `scontrol release {id}` tries again; if that repeats, ask the "
    "administrators",
    "launch failed requeued held": "a node could not start it, and SLURM holds it: `scontrol release {id}` tries "
    "again; cluster.exclude=NODE avoids the node",
    "job requeued in held state": "put back into the queue and held: `scontrol release {id}` lets it go",
    "ReqNodeNotAvail": "nodes it asks for are down, drained or reserved, perhaps for a maintenance: wait, or ask for a "
    "shorter time or other nodes (cluster.timeout_min, cluster.nodelist)",
    "Nodes required for job are DOWN": "nodes it needs are down, drained or kept for other jobs: wait, or ask for "
    "others (cluster.partition, cluster.constraint)",
    "NodeDown": "a node it asks for is down: wait, or leave cluster.nodelist unset",
    "BadConstraints": f"no node has what it asks for: {RESUBMIT_WITH} another cluster.constraint, cluster.gres or size",
    "PartitionTimeLimit": f"its time limit is longer than the partition allows: {RESUBMIT_WITH} a smaller "
    "cluster.timeout_min",
    "PartitionNodeLimit": f"the partition does not give one job that many nodes: {RESUBMIT_WITH} fewer cluster.nodes",
    "PartitionDown": "the partition is down: wait for the administrators, or take another cluster.partition",
    "PartitionInactive": f"the partition takes no jobs: {RESUBMIT_WITH} another cluster.partition",
    "Reservation": "its reservation has not begun",
    "Licenses": "it waits for a license",
    "Prolog": "its nodes are being prepared",
    "InvalidAccount": f"the account is not valid here: {RESUBMIT_WITH} another cluster.account "
    "(`sacctmgr show assoc user=$USER` lists yours)",
    "InvalidQOS": f"the QOS is not valid here: {RESUBMIT_WITH} another cluster.qos",
    "AssociationJobLimit": "your account runs as many jobs as it may: it waits for one of them to end",
    "QOSJobLimit": "as many jobs run in this QOS as may: it waits for one of them to end",
    "AssociationResourceLimit": "your account uses as much as it may at a time: it waits for jobs to end",
    "QOSResourceLimit": "this QOS is used as much as it may be at a time: it waits for jobs to end",
    "AssociationTimeLimit": "your account has used up its time: ask those who grant it",
    "QOSTimeLimit": "this QOS has used up its time: take another cluster.qos, or ask those who grant it",
    "QOSUsageThreshold": "this QOS has used too much lately: wait, or take another cluster.qos",
}
END_STATES = {
    "CANCELLED": "cancelled (scancel)",
    "TIMEOUT": "time limit reached before it could save",
    "OUT_OF_MEMORY": "out of memory: ask for more (cluster.mem_gb), or take less (workers, loader)",
    "NODE_FAIL": "node failed",
    "BOOT_FAIL": "a node did not boot",
    "DEADLINE": "its deadline came before it could end",
    "PREEMPTED": "preempted by a job with higher priority, and not put back into the queue",
    "REVOKED": "revoked: another cluster runs it",
}
PREVIOUS_ENDS = {"PREEMPTED": "preempted", "NODE_FAIL": "a node failed", "TIMEOUT": "time limit reached"}


def pending_reason(job: JobInfo) -> tuple[str, str]:
    """Return SLURM's code for why ``job`` waits, and an explanation with what to do about it, if anything."""
    code = job.reason.partition(",")[0] or "None"
    for known in (job.reason, code, *(k for k in PENDING_REASONS if " " in k and job.reason.startswith(k))):
        if known in PENDING_REASONS:
            return code, PENDING_REASONS[known].format(id=job.id)
    return code, _limit(code) or "see `man squeue`, JOB REASON CODES"


def _limit(code: str) -> str | None:
    """Explain a limit of an account (association) or QOS by its name: whose limit, its kind, on what, for whom."""
    match = re.fullmatch(r"(QOS|Assoc)(Grp|Max|Min)(\w+)", code)
    if not match and not (match := re.fullmatch(r"()(Grp|Max|Min)(\w+)", code)):
        return None
    owner_code, kind, what = match.groups()
    owner = {"QOS": "this QOS", "Assoc": "your account"}.get(owner_code, "your account or QOS")
    if "Wall" in what and kind == "Max":
        return f"longer than {owner} allows one job: {RESUBMIT_WITH} a smaller cluster.timeout_min"
    if kind == "Grp" and "Minutes" in what:
        return (
            f"{owner} has used up its time on {_resource_name(what)}: wait for the new period, or ask those who "
            "grant it"
        )
    if kind == "Grp" or "PerUser" in what or "PerAcc" in what or "Jobs" in what:
        subject, it = ("you have", owner) if "PerUser" in what else (f"{owner} has", "it")
        return f"{subject} as many {_resource_name(what)} in use as {it} allows at a time: it waits for jobs to end"
    if kind == "Min":
        return f"less than {owner} wants a job to ask for ({_resource_name(what)}): {RESUBMIT_WITH} more"
    return f"more {_resource_name(what)} than {owner} allows one job: {RESUBMIT_WITH} less"


def _resource_name(code: str) -> str:
    names = {"Job": "jobs", "Node": "nodes", "GRES": "GPUs", "Gres": "GPUs", "Cpu": "CPUs", "CPU": "CPUs",
             "Mem": "memory", "Billing": "billing units"}  # fmt: skip
    return next((name for key, name in names.items() if code.startswith(key)), "resources")


def end_reason(job: JobInfo) -> str:
    """Return how SLURM says that a job ended; "" if it says no more than that it has ended."""
    return END_STATES.get(job.state, "")


def previous_end_reason(job: JobInfo) -> str | None:
    """Return what ended the last attempt of a job that waits again, None if accounting does not know."""
    return PREVIOUS_ENDS.get(job.earlier_states[-1]) if job.earlier_states else None


def format_span(seconds: float) -> str:
    """Format a duration in seconds for reading: 40 s, 3 min, 2 h 05 min, 3 d 4 h."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} d {s % 86400 // 3600} h"


def format_time(time_s: float, now: float) -> str:
    """Format a time in unix seconds for reading: 22:31 within a day of ``now``, else with its date."""
    return time.strftime("%H:%M" if abs(time_s - now) < 86400 else "%Y-%m-%d %H:%M", time.localtime(time_s))


def format_nodes(nodes: tuple[str, ...]) -> str:
    """Return the names of a few nodes; of many, their number and the first name."""
    return ",".join(nodes) if len(nodes) <= 4 else f"{len(nodes)} nodes ({nodes[0]} …)"
