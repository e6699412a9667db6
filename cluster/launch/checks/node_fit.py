"""Whether the cluster has nodes that are large enough, and enough of them."""

from __future__ import annotations

import re

from runyard.cluster.launch.checks.check import Subject, near
from runyard.cluster.slurm.cluster_info import Nodes
from runyard.config.cluster_validation import gres_counts
from runyard.config.fields import written
from runyard.config.schema import ClusterConfig
from runyard.errors import UserError


def constraint(subject: Subject) -> str:
    """Every feature that is asked for is one that some node has."""
    asked = subject.config.cluster.constraint
    if asked is None:
        return "none"
    known = sorted(set().union(*(kind.features for p in subject.partitions for kind in p.nodes)))
    for word in re.findall(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", re.sub(r"\*\d+", "", asked)):
        if word not in known:
            raise UserError(
                f"cluster.constraint={written(asked)}: no node of {subject.where} has the feature {word}; "
                f"{near(word, known)}features there: {', '.join(known) or 'none'}"
            )
    return asked


def nodes_fit(subject: Subject) -> str:
    """Enough nodes of the partition are large enough for what is asked of each."""
    c, found = subject.config.cluster, subject.partitions
    kinds = [kind for p in found for kind in p.nodes if _has_features(kind, c.constraint)]
    if not kinds:
        raise UserError(
            f"cluster.constraint={written(c.constraint)}: no node of {subject.where} has these features at once; "
            "ask for fewer"
        )
    _each_alone(c, subject.tasks_per_node, kinds, subject.where)
    fitting = [kind for kind in kinds if _holds(kind, c, subject.tasks_per_node)]
    if not fitting:
        raise UserError(
            f"no node of {subject.where} has {_wish(c, subject.tasks_per_node)} at once; "
            f"there are nodes of {'; of '.join(dict.fromkeys(kind.words for kind in kinds))}"
        )
    room = {p.name: sum(kind.count for kind in p.nodes if kind in fitting) for p in found}
    most = {p.name: min(room[p.name], p.most_nodes or room[p.name]) for p in found}
    if c.nodes > max(most.values()):
        raise UserError(
            f"cluster.nodes={c.nodes}: {subject.where} gives a job at most {max(most.values())} with "
            f"{_wish(c, subject.tasks_per_node)}; set cluster.nodes={max(most.values())}, or ask for less of each"
        )
    return f"{c.nodes} of {max(most.values())} with {_wish(c, subject.tasks_per_node)}"


def _has_features(kind: Nodes, constraint: str | None) -> bool:
    """Whether such a node may be one of those that ``constraint`` asks for; of counts and brackets any word does."""
    if constraint is None:
        return True
    if set(constraint) & set("[(*"):
        return any(word in kind.features for word in re.split(r"[^A-Za-z0-9_.+-]+", constraint))
    return any(set(re.split("[&,]", either)) <= kind.features for either in constraint.split("|"))


def _gpus(c: ClusterConfig) -> tuple[str, int]:
    """Kind ("" for any) and number of the GPUs that a node is to have."""
    return gres_counts(c.gres).get("gpu", ("", 0)) if c.gres else ("", c.gpus_per_node or 0)


def _gpus_of(kind: Nodes, wanted: str) -> int:
    gpus = kind.gres.get("gpu", {})
    return gpus.get(wanted, 0) if wanted else sum(gpus.values())


def _holds(kind: Nodes, c: ClusterConfig, tasks: int) -> bool:
    model, gpus = _gpus(c)
    cpus, memory_mb = tasks * (c.cpus_per_task or 1), (c.mem_gb or 0) * 1024
    return _gpus_of(kind, model) >= gpus and kind.cpus >= cpus and kind.memory_mb >= memory_mb


def _each_alone(c: ClusterConfig, tasks: int, kinds: list[Nodes], where: str) -> None:
    """Refuse the one setting that no node satisfies, whatever the others are."""
    things = sorted(set().union(*(kind.gres for kind in kinds)))
    for name, (_, count) in gres_counts(c.gres).items() if c.gres else ():
        if count and name not in things:
            raise UserError(
                f"cluster.gres={written(c.gres)}: no node of {where} has a gres {name}; "
                f"{near(name, things)}there are: {', '.join(things) or 'none'}"
            )
    model, gpus = _gpus(c)
    models = sorted(set().union(*(kind.gres.get("gpu", {}) for kind in kinds)) - {""})
    if model and gpus and model not in models:
        raise UserError(
            f"cluster.gres={written(c.gres)}: no node of {where} has GPUs of the kind {model}; {near(model, models)}"
            + (f"kinds there: {', '.join(models)}" if models else f"GPUs there have no kind: cluster.gres=gpu:{gpus}")
        )
    most = max(_gpus_of(kind, model) for kind in kinds)
    if gpus > most == 0:
        raise UserError(
            f"cluster.gpus_per_node={gpus}: no node of {where} has GPUs; take another cluster.partition or "
            "cluster.constraint, or cluster.gpus_per_node=0"
        )
    if gpus > most:
        raise UserError(
            f"cluster.gpus_per_node={gpus}: no node of {where} has more than {most}{f' {model}' * bool(model)}; "
            f"set cluster.gpus_per_node={most} at most, and more cluster.nodes"
        )
    cpus, most = tasks * (c.cpus_per_task or 1), max(kind.cpus for kind in kinds)
    if cpus > most:
        raise UserError(
            f"cluster.cpus_per_task={c.cpus_per_task or 1}: times {tasks} tasks is {cpus} CPUs on a node, and no node "
            f"of {where} has more than {most}; set cluster.cpus_per_task={max(1, most // tasks)} at most"
        )
    most = max(kind.memory_mb for kind in kinds) // 1024
    if c.mem_gb and c.mem_gb > most:
        raise UserError(
            f"cluster.mem_gb={c.mem_gb}: no node of {where} has more than {most}; set cluster.mem_gb={most} at most"
        )


def _wish(c: ClusterConfig, tasks: int) -> str:
    model, gpus = _gpus(c)
    cpus = tasks * (c.cpus_per_task or 1)
    parts = [f"{gpus} {f'{model} ' * bool(model)}GPU{'s' * (gpus > 1)}"] if gpus else []
    parts += [f"{cpus} CPU{'s' * (cpus > 1)}", *([f"{c.mem_gb} GB"] if c.mem_gb else [])]
    return ", ".join(parts)
