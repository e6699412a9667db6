"""Whether this SLURM would take the job and ever start it: asked before a run is created, mended by a setting's name.

sbatch alone does not say: it also takes jobs that wait for ever, as for a partition that is down or a time limit
beyond the partition's.
"""

from __future__ import annotations

import re

from runyard.cluster.launch.batch_script import require_sbatch
from runyard.cluster.launch.checks.check import CheckContext, Question, suggestion
from runyard.cluster.launch.checks.node_fit import constraint, nodes_fit
from runyard.cluster.slurm import queue
from runyard.config.fields import format_literal
from runyard.config.schema import ClusterConfig
from runyard.errors import UserError
from runyard.slurm_client import QueryError, SlurmRejected, run_query

SBATCH_TIMEOUT_S = 30.0
IN_SERVICE_STATES = {"idle", "mix", "alloc", "comp", "plnd"}
UNAVAILABLE_NODES = "Requested node configuration is not available"  # so --test-only says also of nodes that come back
# sbatch's words, the settings they are about, and the command that lists what there is
REFUSALS = [
    (r"[Pp]artition (name|specified)|invalid partition", ("partition",), "`sinfo` lists the partitions"),
    (r"MaxWall|[Tt]ime ?limit|TimeLimit", ("timeout_min", "qos", "partition"), "set a smaller cluster.timeout_min"),
    (r"[Qq]os|QOS", ("qos", "account"), "`sacctmgr show assoc user=$USER` lists what you may use"),
    (r"[Aa]ccount", ("account", "partition"), "`sacctmgr show assoc user=$USER` lists your accounts"),
    (r"[Ff]eature", ("constraint",), "`sinfo -o %f` lists the features"),
    (r"\(gres\)|[Gg][Rr][Ee][Ss]", ("gres", "gpus_per_node"), "`sinfo -o %G` lists what nodes have"),
    (r"[Nn]ode name", ("nodelist", "exclude"), "`sinfo -N` lists the nodes"),
    (r"mail", ("mail_type", "mail_user"), "see `man sbatch`"),
    (r"node configuration|[Mm]emory|CPU", ("nodes", "nodelist", "constraint", "gres", "gpus_per_node", "tasks_per_node",
                                           "cpus_per_task", "mem_gb"), "ask for less: `sinfo -o '%P %D %c %m %G'`"),
]  # fmt: skip


def slurm_responds(context: CheckContext) -> str:
    """SLURM's commands are here, and the controller answers them."""
    require_sbatch()
    try:
        return f"version {context.site.version}, {len(context.site.partitions)} partitions"
    except QueryError as error:
        raise UserError(f"SLURM does not answer ({error}); try again later, or ask the cluster's support") from None


def partition(context: CheckContext) -> str:
    """Each named partition exists; one of them is up."""
    asked, there = context.asked_partitions, context.site.partitions
    for name in asked:
        if name not in there:
            raise UserError(
                f"cluster.partition={format_literal(context.config.cluster.partition)}: no partition {name} here; "
                f"{suggestion(name, there)}partitions here: {', '.join(there)}"
            )
    up = [p.name for p in context.partitions if p.is_up]
    if not up:
        others = [p.name for p in there.values() if p.is_up]
        raise UserError(
            f"cluster.partition={context.config.cluster.partition}: it is down, so the job would wait for ever; "
            f"partitions that are up: {', '.join(others) or 'none'}"
        )
    return ", ".join(up) if asked else f"the cluster's own choice of {', '.join(up)}"


def time_limit(context: CheckContext) -> str:
    """Not longer than a partition allows: such a job would be taken, and wait for ever."""
    minutes = context.config.cluster.timeout_min
    limits = {p.name: p.limit_s for p in context.partitions if p.is_up}
    if any(limit is None or limit >= minutes * 60 for limit in limits.values()):
        return f"{minutes} min"
    longest = max(limit for limit in limits.values() if limit is not None) // 60 if limits else 0
    there = [p for p in context.site.partitions.values() if p.is_up]
    others = [p.name for p in there if p.limit_s is None or p.limit_s >= minutes * 60]
    raise UserError(
        f"cluster.timeout_min={minutes}: at most {longest} min in partition {', '.join(limits)}; "
        f"set cluster.timeout_min={longest} (the run goes on in another job after it)"
        + (f", or cluster.partition={others[0]}" if others else "")
    )


def account(context: CheckContext) -> str:
    """The account is one of the user's, and valid in the partition."""
    cluster, rows = context.config.cluster, context.site.associations
    names = list(dict.fromkeys(row.account for row in rows))
    if not rows:
        if not context.site.accounts_enforced:
            raise QueryError("accounting knows no account of yours, and the cluster does not ask for one")
        raise UserError("accounting knows no account of yours; ask the cluster's support for one")
    if cluster.account is None:
        return f"your default (yours: {', '.join(names)})"
    mine = [row for row in rows if row.account == cluster.account.lower()]  # SLURM knows small letters only
    if not mine:
        raise UserError(
            f"cluster.account={format_literal(cluster.account)}: not one of yours; {suggestion(cluster.account, names)}"
            f"yours are {', '.join(names)}"
        )
    where = {row.partition for row in mine}
    if "" not in where and (asked := context.asked_partitions) and not where & set(asked):
        raise UserError(
            f"cluster.account={format_literal(cluster.account)}: not valid in cluster.partition={cluster.partition}; "
            f"it is in {', '.join(sorted(where))}"
        )
    return cluster.account


def qos(context: CheckContext) -> str:
    """The user may use the quality of service, by the account that is charged."""
    cluster = context.config.cluster
    if cluster.qos is None:
        return "the cluster's default"
    mine = [r for r in context.site.associations if cluster.account is None or r.account == cluster.account.lower()]
    known = sorted(set().union(*(row.qos for row in mine)))
    if not known:
        raise QueryError("accounting does not say which you may use")
    if cluster.qos not in known:
        raise UserError(
            f"cluster.qos={format_literal(cluster.qos)}: not one you may use; {suggestion(cluster.qos, known)}"
            f"you may use {', '.join(known)}"
        )
    return cluster.qos


def array_size(context: CheckContext) -> str:
    """The sweep's array has elements that SLURM can number."""
    most = context.site.max_array_size
    if context.sweep_size > most:
        raise UserError(
            f"a sweep of {context.sweep_size} points: this SLURM's arrays hold at most {most}; "
            "submit it in parts of that"
        )
    return f"{context.sweep_size} of at most {most}"


def dependency(context: CheckContext) -> str:
    """The job to wait for may yet end well: after one that SLURM does not know a job starts at once, and after one
    that failed never.
    """
    if context.after is None:
        return "no other job is waited for"
    mine = (context.after, f"{context.after}_")  # an array stands for its elements
    for query in (queue.squeue, queue.sacct):
        answer = query([context.after])
        jobs = [job for number, job in answer.jobs.items() if number == mine[0] or number.startswith(mine[1])]
        if query is queue.squeue and answer.error:
            raise QueryError(answer.error)
        if bad := [job for job in jobs if not job.active and job.state != "COMPLETED"]:
            raise UserError(
                f"--after {context.after}: job {bad[0].id} has ended ({bad[0].state}), so the job would never start; "
                "wait for another, or go on with that run first: runyard resume"
            )
        if jobs:
            return f"job {context.after} is {jobs[0].state}"
    raise UserError(
        f"--after {context.after}: SLURM knows no such job, so the job would start at once; "
        "`squeue --me` lists yours; leave --after out if it has ended well"
    )


def sbatch_accepts(context: CheckContext) -> str:
    """sbatch would take this very script."""
    if context.script is None:
        raise QueryError("there is no batch script")
    try:
        run_query("sbatch", "--test-only", timeout_s=SBATCH_TIMEOUT_S, stdin=context.script())
    except SlurmRejected as error:
        if UNAVAILABLE_NODES in str(error) and (
            away := count_unavailable(run_query("sinfo", "--noheader", "--format=%t|%D"))
        ):
            raise QueryError(f"{away} nodes are down, drained or reserved, and sbatch counts only the rest") from None
        raise UserError(refusal_text(context.config.cluster, str(error))) from None
    return "sbatch --test-only takes the script"


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
    """Nodes that take no jobs now, from sinfo's %t|%D. A star: it does not answer; other signs are no fault."""
    states = [line.split("|") for line in text.splitlines()]
    return sum(int(count) for state, count in states if state.rstrip("~#%$@^!-+") not in IN_SERVICE_STATES)


def refusal_text(cluster: ClusterConfig, said: str) -> str:
    """sbatch's words as "setting=value: words; mend"."""
    for pattern, names, fix in REFUSALS:
        if re.search(pattern, said):
            given = [f"cluster.{n}={format_literal(v)}" for n in names if (v := getattr(cluster, n)) is not None]
            return f"{' '.join(given) or f'cluster.{names[0]}=null'}: sbatch refuses it ({said}); {fix}"
    return f"sbatch refuses the job ({said}); mend what it names, or ask the cluster's support"
