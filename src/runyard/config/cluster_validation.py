"""Checks across the cluster settings, and of the shell commands among them. Imports no torch.

A batch script is text: a value with a newline or a quote could run as a command, or could hide the lines after it from
sbatch. Every configuration passes these checks and ``patterns``, so no value reaches a script without.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from runyard.config.fields import format_literal
from runyard.config.sbatch_options import check_extra
from runyard.config.setting import settings_of
from runyard.errors import UserError

if TYPE_CHECKING:
    from runyard.config.schema import ClusterConfig

START_AND_SAVE_S = 30  # minimum time that a job needs before it is asked to save and stop
# exec and a command; only with redirections it goes on in the same shell
REPLACES_SHELL = re.compile(r"(^|[;&|({]|\b(then|else|do)\b)\s*exec\s+(?!\d*[<>&]|\{\w+\}[<>])\S")
MAIL_TYPES = ("NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "STAGE_OUT", "TIME_LIMIT",
              "TIME_LIMIT_90", "TIME_LIMIT_80", "TIME_LIMIT_50", "ARRAY_TASKS")  # fmt: skip


def check_cluster(cluster: ClusterConfig) -> None:
    """Refuse invalid values, settings that conflict, and settings that the launcher would ignore.

    Raises:
        UserError: a setting is refused; the message names it.
    """
    _check_mail(cluster)
    _check_env_setup(cluster.env_setup)
    check_extra(cluster)
    if cluster.launcher == "local":
        _check_local(cluster)
    else:
        _check_gpus(cluster)
        _check_time(cluster)
        _check_chain(cluster)
        _check_pack(cluster)


def gres_counts(gres: str) -> dict[str, tuple[str, int]]:
    """Return what a ``gres`` requests on each node: for each name its kind ("" for any) and its count."""
    counts: dict[str, tuple[str, int]] = {}
    for part in gres.split(","):
        name, *rest = part.split(":")
        number = rest.pop() if rest and rest[-1][0].isdigit() and rest[-1].rstrip("KMGT").isdigit() else "1"
        scale = 1024 ** "_KMGT".find(number[-1]) if number[-1] in "KMGT" else 1
        kind, previous = rest[0] if rest else "", counts.get(name, ("", 0))[1]
        counts[name] = (kind, previous + int(number.rstrip("KMGT")) * scale)
    return counts


def _check_mail(cluster: ClusterConfig) -> None:
    mail_types = [] if cluster.mail_type is None else cluster.mail_type.split(",")
    if unknown_types := [
        mail_type for mail_type in mail_types if not mail_type.isascii() or mail_type.upper() not in MAIL_TYPES
    ]:
        raise UserError(
            f"cluster.mail_type={format_literal(cluster.mail_type)}: SLURM knows no {unknown_types[0]!r}",
            f"expected some of {', '.join(MAIL_TYPES)}, such as END,FAIL",
        )
    if cluster.mail_user is not None and not mail_types:
        raise UserError(
            f"cluster.mail_user={format_literal(cluster.mail_user)}: without cluster.mail_type no mail is sent",
            "set cluster.mail_type='\"END,FAIL\"', or leave mail_user out",
        )


def _check_env_setup(lines: list[str]) -> None:
    """Check that each line is one complete shell command: an open quote would swallow the lines after it."""
    for number, line in enumerate(lines):
        entry = f"cluster.env_setup[{number}]={format_literal(line)}"
        if not line.isprintable() or not line.strip():
            raise UserError(
                f"{entry}: expected one line of printable characters", "put each line into an entry of its own"
            )
        if line.lstrip().startswith("#"):
            raise UserError(
                f"{entry}: expected a command, not a comment, which sbatch may read as an option", "leave it out"
            )
        try:
            shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"{entry}: {str(error).lower()}", "close it, or leave it out") from None
        if REPLACES_SHELL.search(line):
            raise UserError(f"{entry}: exec replaces the batch script, so that nothing trains", "leave exec out")
        if line.endswith("\\") or re.search(r"(?<!<)<<(?!<)", line):
            raise UserError(f"{entry}: goes on in the next line, which is another entry", "write it as one line")


def _check_local(cluster: ClusterConfig) -> None:
    for name, known in settings_of(type(cluster)).items():
        value = getattr(cluster, name)
        if known.slurm_only and value and value != known.unset:
            raise UserError(
                f"cluster.{name}={format_literal(value)}: only SLURM uses it, and cluster=local starts processes on "
                "this machine",
                f"set cluster=slurm or your cluster's profile, or cluster.{name}={format_literal(known.unset)}",
            )


def _check_gpus(cluster: ClusterConfig) -> None:
    gpus, tasks = cluster.gpus_per_node or 0, cluster.tasks_per_node
    if cluster.gres is not None:
        requested = gres_counts(cluster.gres).get("gpu", ("", 0))[1]
        if requested != gpus:
            raise UserError(
                f"cluster.gres={format_literal(cluster.gres)} asks for {requested} GPUs on a node, and "
                f"cluster.gpus_per_node={format_literal(cluster.gpus_per_node)}",
                "give both the same number",
            )
    if gpus and tasks and tasks % gpus and cluster.runs_per_task == 1:
        raise UserError(
            f"cluster.tasks_per_node={tasks}: does not divide among cluster.gpus_per_node={gpus}",
            "leave it unset for one task per GPU",
        )


def _check_time(cluster: ClusterConfig) -> None:
    if cluster.timeout_min * 60 < cluster.signal_delay_s + START_AND_SAVE_S:
        minimum_min = -(-(cluster.signal_delay_s + START_AND_SAVE_S) // 60)
        raise UserError(
            f"cluster.timeout_min={cluster.timeout_min}: the job is asked to save cluster.signal_delay_s="
            f"{cluster.signal_delay_s} s before its end, and needs {START_AND_SAVE_S} s to start and save",
            f"set cluster.timeout_min={minimum_min} at least, or a shorter signal_delay_s",
        )


def _check_chain(cluster: ClusterConfig) -> None:
    if cluster.chain > 1 and cluster.requeue:
        raise UserError(
            f"cluster.chain={cluster.chain}: takes the place of requeueing, and cluster.requeue=true",
            "set cluster.requeue=false, or leave cluster.chain out",
        )


def _check_pack(cluster: ClusterConfig) -> None:
    if cluster.runs_per_task > 1 and cluster.nodes * (cluster.tasks_per_node or 1) > 1:
        name = "nodes" if cluster.nodes > 1 else "tasks_per_node"
        raise UserError(
            f"cluster.runs_per_task={cluster.runs_per_task}: is for runs of one process, and "
            f"cluster.{name}={format_literal(getattr(cluster, name))}",
            f"leave one of the two out, or set cluster.{name}=1",
        )
