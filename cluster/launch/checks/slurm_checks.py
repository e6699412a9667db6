"""Checks that this SLURM would accept the job and start it. A failure names the setting that fixes it.

sbatch alone does not tell: it also accepts jobs that wait forever, as for a partition that is down or a time limit
beyond the partition's.
"""

from __future__ import annotations

from runyard.cluster.launch.batch_script import require_sbatch
from runyard.cluster.launch.checks.check import CheckContext, Question, suggestion
from runyard.cluster.launch.checks.node_fit import constraint, nodes_fit
from runyard.cluster.launch.refusals import LATER, JobLimitReached, SubmissionDelayed, names_no_limit, refusal
from runyard.cluster.slurm import queue
from runyard.config.fields import format_literal
from runyard.errors import UserError
from runyard.slurm_client import QueryError, SlurmRejected, SlurmUnavailable, run_query

IN_SERVICE_STATES = {"idle", "mix", "alloc", "comp", "plnd"}
# What --test-only says, also of nodes that will come back.
UNAVAILABLE_NODES = "Requested node configuration is not available"


def slurm_responds(context: CheckContext) -> str:
    """Check that SLURM's commands are installed and that the controller answers."""
    require_sbatch()
    try:
        return f"version {context.cluster_info.version}, {len(context.cluster_info.partitions)} partitions"
    except SlurmUnavailable as error:
        raise SubmissionDelayed(f"SLURM does not answer ({error})", f"{LATER}, or ask the cluster's support") from None
    except QueryError as error:
        if "configuration source" in str(error):  # SLURM's packages on a machine that belongs to no cluster
            fix = "submit from a cluster's login node, or in the shell of one here: runyard slurm up"
            raise UserError("this machine has sbatch, but no cluster is configured (no slurm.conf)", fix) from None
        raise UserError(f"SLURM does not answer ({error})", "try again later, or ask the cluster's support") from None


def partition(context: CheckContext) -> str:
    """Check that each named partition exists and that one of them is up."""
    requested, existing = context.asked_partitions, context.cluster_info.partitions
    for name in requested:
        if name not in existing:
            raise UserError(
                f"cluster.partition={format_literal(context.config.cluster.partition)}: no partition {name} here",
                f"{suggestion(name, existing)}partitions here: {', '.join(existing)}",
            )
    up = [p.name for p in context.partitions if p.is_up]
    if not up:
        others = [p.name for p in existing.values() if p.is_up]
        raise UserError(
            f"cluster.partition={context.config.cluster.partition}: it is down, so the job would wait for ever",
            f"partitions that are up: {', '.join(others) or 'none'}",
        )
    return ", ".join(up) if requested else f"the cluster's own choice of {', '.join(up)}"


def time_limit(context: CheckContext) -> str:
    """Check that a partition allows the time limit: a job with a longer one would be accepted, and wait forever."""
    minutes = context.config.cluster.timeout_min
    limits = {p.name: p.limit_s for p in context.partitions if p.is_up}
    if any(limit is None or limit >= minutes * 60 for limit in limits.values()):
        return f"{minutes} min"
    longest = max(limit for limit in limits.values() if limit is not None) // 60 if limits else 0
    up_partitions = [p for p in context.cluster_info.partitions.values() if p.is_up]
    others = [p.name for p in up_partitions if p.limit_s is None or p.limit_s >= minutes * 60]
    raise UserError(
        f"cluster.timeout_min={minutes}: at most {longest} min in partition {', '.join(limits)}",
        f"set cluster.timeout_min={longest} (the run continues in another job after it)"
        + (f", or cluster.partition={others[0]}" if others else ""),
    )


def account(context: CheckContext) -> str:
    """Check that the account is one of the user's, and valid in the partition."""
    cluster, rows = context.config.cluster, context.cluster_info.associations
    names = list(dict.fromkeys(row.account for row in rows))
    if not rows:
        if not context.cluster_info.accounts_enforced:
            raise QueryError("accounting knows no account of yours, and the cluster does not ask for one")
        raise UserError("accounting knows no account of yours", "ask the cluster's support for one")
    if cluster.account is None:
        return f"your default (yours: {', '.join(names)})"
    own = [row for row in rows if row.account == cluster.account.lower()]  # SLURM stores names in lower case
    if not own:
        raise UserError(
            f"cluster.account={format_literal(cluster.account)}: not one of yours",
            f"{suggestion(cluster.account, names)}yours are {', '.join(names)}",
        )
    valid_in = {row.partition for row in own}
    if "" not in valid_in and (requested := context.asked_partitions) and not valid_in & set(requested):
        raise UserError(
            f"cluster.account={format_literal(cluster.account)}: not valid in cluster.partition={cluster.partition}",
            f"it is in {', '.join(sorted(valid_in))}",
        )
    return cluster.account


def qos(context: CheckContext) -> str:
    """Check that the user may use the quality of service with the account that is charged."""
    cluster = context.config.cluster
    if cluster.qos is None:
        return "the cluster's default"
    rows = context.cluster_info.associations
    own = [row for row in rows if cluster.account is None or row.account == cluster.account.lower()]
    known = sorted(set().union(*(row.qos for row in own)))
    if not known:
        raise QueryError("accounting does not say which you may use")
    if cluster.qos not in known:
        raise UserError(
            f"cluster.qos={format_literal(cluster.qos)}: not one you may use",
            f"{suggestion(cluster.qos, known)}you may use {', '.join(known)}",
        )
    return cluster.qos


def array_size(context: CheckContext) -> str:
    """Check that SLURM's arrays can have as many elements as the sweep or the chain has jobs."""
    maximum = context.cluster_info.max_array_size
    jobs = -(-context.sweep_size // context.config.cluster.runs_per_task)
    if jobs > maximum:
        raise UserError(
            f"a sweep of {context.sweep_size} points: this SLURM's arrays hold at most {maximum}",
            "submit it in parts of that size",
        )
    if (chain := context.config.cluster.chain) > maximum:
        raise UserError(f"cluster.chain={chain}: this SLURM's arrays hold at most {maximum}", "set that at most")
    return f"{max(jobs, chain)} of at most {maximum}"


def dependency(context: CheckContext) -> str:
    """Check that the job to wait for can still end as it has to.

    After a job that SLURM does not know, this one would start at once; after one that ended otherwise, never.
    """
    if context.after is None:
        return "no other job is waited for"
    kind, _, number = context.after.rpartition(":")
    for query in (queue.squeue, queue.sacct):
        answer = query([number])
        jobs = [job for job_id, job in answer.jobs.items() if job_id == number or job_id.startswith(f"{number}_")]
        if query is queue.squeue and answer.error:
            raise QueryError(answer.error)
        failed = [job for job in jobs if not job.active and job.state != "COMPLETED"]
        active = any(job.active for job in jobs)
        if kind == "" and failed:
            raise UserError(
                f"--after {context.after}: job {failed[0].id} has ended ({failed[0].state}), so the job would never "
                "start",
                "wait for another, or resume that run first: runyard resume",
            )
        if kind == "afternotok" and jobs and not failed and not active:
            raise UserError(
                f"--after {context.after}: job {jobs[0].id} has ended well, so the job would never start",
                "leave --after out, or give afterany:",
            )
        if jobs:
            return f"job {number} is {jobs[0].state}"
    raise UserError(
        f"--after {context.after}: SLURM knows no such job, so the job would start at once",
        "`squeue --me` lists yours; leave --after out if it has ended",
    )


def sbatch_accepts(context: CheckContext) -> str:
    """Check that sbatch would accept this exact script."""
    try:
        estimate = context.expected_start
    except SlurmRejected as error:
        if UNAVAILABLE_NODES in str(error) and (
            unavailable := count_unavailable(run_query("sinfo", "--noheader", "--format=%t|%D"))
        ):
            raise QueryError(
                f"{unavailable} nodes are down, drained or reserved, and sbatch counts only the rest"
            ) from None
        if names_no_limit(str(error)):
            raise QueryError(f"{error}: only a submission is told which limit") from None
        refused = refusal(context.config.cluster, str(error))
        if isinstance(refused, JobLimitReached):  # by now; and a grid can be submitted in parts
            raise QueryError(refused.problem) from None
        raise refused from None
    when = f": it would start {estimate.text}" if estimate is not None else ""
    return f"sbatch --test-only accepts the script{when}"


SLURM_CHECKS: list[tuple[str, Question]] = [
    ("SLURM", slurm_responds),
    ("partition", partition),
    ("time limit", time_limit),
    ("account", account),
    ("qos", qos),
    ("constraint", constraint),
    ("nodes", nodes_fit),
    ("array", array_size),
    ("after", dependency),
    ("sbatch", sbatch_accepts),
]


def count_unavailable(text: str) -> int:
    """Return the number of nodes that accept no jobs now, from sinfo's %t|%D.

    A state with a star is of nodes that do not answer; other signs after a state are no fault.
    """
    states = [line.split("|") for line in text.splitlines()]
    return sum(int(count) for state, count in states if state.rstrip("~#%$@^!-+") not in IN_SERVICE_STATES)
