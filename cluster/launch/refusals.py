"""What sbatch's refusals mean: one table of its own words, each with the settings that it is about and the fix.

SLURM prints two things: the code of the limit that was met (``QOSMaxSubmitJobPerUserLimit``, one of squeue's reasons),
which says exactly what it was, and a sentence, which may name several causes at once. So codes come first in the table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from runyard.config.fields import format_literal
from runyard.config.schema import ClusterConfig
from runyard.errors import UserError

OWN_LIMITS = "`sacctmgr show assoc user=$USER` lists your limits"
QOS_LIMITS = "`sacctmgr show qos` lists its limits"
OWN_ACCOUNTS = "set one of your accounts: `sacctmgr show assoc user=$USER` lists them"
OWN_QOS = "set one that you may use: `sacctmgr show assoc user=$USER` lists them"
WAIT = "wait until some jobs have ended (`runyard submit --wait` does), or cancel some (`squeue --me` lists yours)"
LATER = "try again later (`runyard submit --wait` does)"
SIZE = ("nodes", "gpus_per_node", "gres", "tasks_per_node", "cpus_per_task", "mem_gb")
# The sentence of every limit in accounting; without a code before it, it does not say which.
ANY_LIMIT = "Job violates accounting/QOS policy"


class SubmissionDelayed(UserError):
    """Nothing was submitted, for a reason that passes by itself: a limit on jobs, a controller that is busy or away."""


class JobLimitReached(SubmissionDelayed):
    """The user, the account or the QOS has as many jobs as it may: fewer at once may be taken."""


class Refusal(NamedTuple):
    """A pattern in sbatch's message, the settings that it is about, the fix, and the error that it is."""

    pattern: str
    settings: tuple[str, ...]
    fix: str
    error: type[UserError] = UserError


REFUSALS = (
    # Codes, of a limit of the association (user and account) or of the QOS.
    Refusal(r"\bAssoc(Max|Grp)(SubmitJobs?|Jobs)Limit", ("account",), f"{WAIT}; {OWN_LIMITS}", JobLimitReached),
    Refusal(r"\b(QOS|Max)\w*(SubmitJobs?|Jobs)(Limit|Per)", ("qos",), f"{WAIT}; {QOS_LIMITS}", JobLimitReached),
    Refusal(
        r"\b(Assoc|QOS)\w*Wall", ("timeout_min", "qos"), "set a smaller cluster.timeout_min, or another cluster.qos"
    ),
    Refusal(
        r"\b(Assoc|QOS)Max\w+MinutesPerJob",
        ("timeout_min", *SIZE),
        "set a smaller cluster.timeout_min, or ask for less",
    ),
    Refusal(
        r"\b(Assoc|QOS)Grp\w+Minutes",
        ("account", "qos"),
        "the budget is used up (`sshare`): charge another cluster.account",
    ),
    Refusal(r"\bQOSMin", ("qos", *SIZE), f"ask for more, or take another cluster.qos: {QOS_LIMITS}"),
    Refusal(
        r"\b(Assoc|QOS|Max)\w*Node(Limit|Per)\w*", ("nodes", "account", "qos"), f"set fewer cluster.nodes; {OWN_LIMITS}"
    ),
    Refusal(
        r"\b(Assoc|QOS|Max)\w*GRES\w*", ("gres", "gpus_per_node", "nodes", "qos"), f"ask for fewer GPUs; {OWN_LIMITS}"
    ),
    Refusal(
        r"\b(Assoc|QOS|Max)\w*Cpu\w*",
        ("cpus_per_task", "tasks_per_node", "nodes", "qos"),
        f"ask for fewer CPUs; {OWN_LIMITS}",
    ),
    Refusal(r"\b(Assoc|QOS|Max)\w*Mem\w*", ("mem_gb", "nodes", "qos"), f"set a smaller cluster.mem_gb; {OWN_LIMITS}"),
    Refusal(r"\b(Assoc|QOS|Max)\w*Licen[cs]e", ("extra.licenses",), "ask for fewer licences: `scontrol show lic`"),
    Refusal(r"\b(Assoc|QOS)(Max|Grp)", (*SIZE, "account", "qos"), f"ask for less; {OWN_LIMITS}"),
    Refusal(
        r"\bPartitionTimeLimit", ("timeout_min", "partition"), "set a smaller cluster.timeout_min: `sinfo -o '%P %l'`"
    ),
    Refusal(r"\bPartitionNodeLimit", ("nodes", "partition"), "set fewer cluster.nodes: `sinfo -o '%P %s'`"),
    Refusal(r"\b(Invalid|QOSNot)(QOS|Allowed)|QOSUsageThreshold", ("qos", "account"), OWN_QOS),
    Refusal(r"\bInvalidAccount|AccountNotAllowed", ("account", "partition"), OWN_ACCOUNTS),
    # Sentences.
    Refusal(
        r"[Ww][Cc][Kk]ey",
        ("extra.wckey",),
        "give yours, as 'cluster.extra={wckey: NAME}' or SBATCH_WCKEY: `sacctmgr show wckey user=$USER`",
    ),
    Refusal(
        r"maintenance",
        ("timeout_min",),
        "set a cluster.timeout_min that ends before it begins (`scontrol show reservation`), or submit after it",
    ),
    Refusal(
        r"[Rr]eservation", ("extra.reservation",), "set one that you may use: `scontrol show reservation` lists them"
    ),
    Refusal(r"[Ll]icen[cs]e", ("extra.licenses",), "set one that there is: `scontrol show lic` lists them"),
    Refusal(
        r"ubmissions disabled|temporarily unable|create job record, try again|standby mode|in a bit",
        (),
        LATER,
        SubmissionDelayed,
    ),
    Refusal(
        r"[Pp]artition (name|specified|configuration|not available|in DOWN)|invalid partition|this partition",
        ("partition",),
        "set another: `sinfo` lists them",
    ),
    Refusal(
        ANY_LIMIT,
        (),
        "sbatch does not say which of these limits: `sacctmgr show assoc user=$USER` and `sacctmgr show qos` "
        "list them, on the number of jobs, their size and their time",
    ),
    Refusal(
        r"[Tt]ime ?limit|time-min|Invalid time",
        ("timeout_min", "qos", "partition"),
        "set a smaller cluster.timeout_min",
    ),
    Refusal(r"[Qq]os|QOS", ("qos", "account"), OWN_QOS),
    Refusal(r"[Aa]ccount", ("account", "partition"), OWN_ACCOUNTS),
    Refusal(r"[Ff]eature", ("constraint",), "set one that nodes have: `sinfo -o %f` lists them"),
    Refusal(r"\(gres\)|[Gg][Rr][Ee][Ss]", ("gres", "gpus_per_node"), "set what nodes have: `sinfo -o %G` lists it"),
    Refusal(r"[Nn]ode name", ("nodelist", "exclude"), "set one that there is: `sinfo -N` lists them"),
    Refusal(r"mail", ("mail_type", "mail_user"), "see `man sbatch`"),
    Refusal(r"dependency", (), "give another --after: `squeue --me` lists your jobs"),
    Refusal(r"array", ("array_parallelism",), "submit the grid in parts: `scontrol show config` says MaxArraySize"),
    Refusal(
        r"Node count|[Nn]odes? (not )?(in|required|busy|available)",
        ("nodes", "nodelist", "partition"),
        "set fewer cluster.nodes: `sinfo -o '%P %D %s'`",
    ),
    Refusal(
        r"node configuration|processors|[Mm]emory|CPU|[Tt]ask",
        ("nodes", "nodelist", "constraint", *SIZE[1:]),
        "ask for less: `sinfo -o '%P %D %c %m %G'`",
    ),
)


def refusal(cluster: ClusterConfig, message: str) -> UserError:
    """Return sbatch's message as an error that names the setting, and the fix; one that passes as SubmissionDelayed."""
    if names := [name for name in cluster.extra if re.search(rf"--{re.escape(name)}\b", message)]:
        named = " ".join(_given(cluster, [f"extra.{name}" for name in names]))
        return UserError(f"{named}: sbatch refuses it ({message})", "`sbatch --help` lists what this SLURM takes")
    for row in REFUSALS:
        if re.search(row.pattern, message):
            settings = " ".join(_given(cluster, row.settings))
            if not settings and row.settings and row.error is UserError and not row.settings[0].startswith("extra."):
                settings = f"cluster.{row.settings[0]}=null"
            what = f"{settings}: sbatch refuses it" if settings else "sbatch refuses the job"
            return row.error(f"{what} ({message})", row.fix)
    return UserError(f"sbatch refuses the job ({message})", "fix what it names, or ask the cluster's support")


def names_no_limit(message: str) -> bool:
    """Return whether the message says that a limit of accounting is met, and not which one."""
    return (
        ANY_LIMIT in message and next(row for row in REFUSALS if re.search(row.pattern, message)).pattern == ANY_LIMIT
    )


def _given(cluster: ClusterConfig, names: tuple[str, ...] | list[str]) -> Iterator[str]:
    """Yield the settings that have a value, as they are given."""
    for name in names:
        group, _, option = name.partition(".")
        value = cluster.extra.get(option) if option else getattr(cluster, group)
        if value is not None:
            yield f"cluster.{name}={format_literal(value)}"
