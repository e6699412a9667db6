"""Checks that the cluster has enough nodes that are large enough for the job."""

from __future__ import annotations

import re

from runyard.cluster.launch.checks.check import CheckContext, suggestion
from runyard.cluster.slurm.cluster_info import NodeGroup
from runyard.config.cluster_validation import gres_counts
from runyard.config.fields import format_literal
from runyard.config.schema import ClusterConfig
from runyard.errors import UserError


def constraint(context: CheckContext) -> str:
    """Check that every requested feature is one that some node has."""
    requested = context.config.cluster.constraint
    if requested is None:
        return "none"
    known = sorted(set().union(*(group.features for p in context.partitions for group in p.nodes)))
    for feature in re.findall(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", re.sub(r"\*\d+", "", requested)):
        if feature not in known:
            raise UserError(
                f"cluster.constraint={format_literal(requested)}: no node of {context.place_text} has the feature "
                f"{feature}",
                f"{suggestion(feature, known)}features there: {', '.join(known) or 'none'}",
            )
    return requested


def nodes_fit(context: CheckContext) -> str:
    """Check that enough nodes of the partition are large enough for what is requested of each."""
    c, partitions = context.config.cluster, context.partitions
    kinds = [group for p in partitions for group in p.nodes if _has_features(group, c.constraint)]
    if not kinds:
        raise UserError(
            f"cluster.constraint={format_literal(c.constraint)}: no node of {context.place_text} has these features "
            "at once",
            "ask for fewer",
        )
    _check_each_setting(c, context.tasks_on_node, kinds, context.place_text)
    fitting = [group for group in kinds if _is_large_enough(group, c, context.tasks_on_node)]
    if not fitting:
        raise UserError(
            f"no node of {context.place_text} has {_request_text(c, context.tasks_on_node)} at once",
            f"there are nodes of {'; of '.join(dict.fromkeys(group.description for group in kinds))}",
        )
    node_counts = {p.name: sum(group.count for group in p.nodes if group in fitting) for p in partitions}
    largest = {p.name: min(node_counts[p.name], p.max_nodes or node_counts[p.name]) for p in partitions}
    if c.nodes > max(largest.values()):
        raise UserError(
            f"cluster.nodes={c.nodes}: {context.place_text} gives a job at most {max(largest.values())} with "
            f"{_request_text(c, context.tasks_on_node)}",
            f"set cluster.nodes={max(largest.values())}, or ask for less of each",
        )
    return f"{c.nodes} of {max(largest.values())} with {_request_text(c, context.tasks_on_node)}"


def _has_features(group: NodeGroup, constraint: str | None) -> bool:
    """Return whether these nodes may satisfy ``constraint``; of one with counts or brackets, one feature is enough."""
    if constraint is None:
        return True
    if set(constraint) & set("[(*"):
        return any(feature in group.features for feature in re.split(r"[^A-Za-z0-9_.+-]+", constraint))
    return any(set(re.split("[&,]", alternative)) <= group.features for alternative in constraint.split("|"))


def _gpus(c: ClusterConfig) -> tuple[str, int]:
    """Return the kind ("" for any) and the number of the GPUs that are requested of a node."""
    return gres_counts(c.gres).get("gpu", ("", 0)) if c.gres else ("", c.gpus_per_node or 0)


def _gpus_of(group: NodeGroup, model: str) -> int:
    gpus = group.gres.get("gpu", {})
    return gpus.get(model, 0) if model else sum(gpus.values())


def _is_large_enough(group: NodeGroup, c: ClusterConfig, tasks: int) -> bool:
    model, gpus = _gpus(c)
    cpus, memory_mb = tasks * (c.cpus_per_task or 1), (c.mem_gb or 0) * 1024
    return _gpus_of(group, model) >= gpus and group.cpus >= cpus and group.memory_mb >= memory_mb


def _check_each_setting(c: ClusterConfig, tasks: int, kinds: list[NodeGroup], place: str) -> None:
    """Refuse a setting that no node satisfies, whatever the others are."""
    gres_names = sorted(set().union(*(group.gres for group in kinds)))
    for name, (_, count) in gres_counts(c.gres).items() if c.gres else ():
        if count and name not in gres_names:
            raise UserError(
                f"cluster.gres={format_literal(c.gres)}: no node of {place} has a gres {name}",
                f"{suggestion(name, gres_names)}there are: {', '.join(gres_names) or 'none'}",
            )
    model, gpus = _gpus(c)
    models = sorted(set().union(*(group.gres.get("gpu", {}) for group in kinds)) - {""})
    if model and gpus and model not in models:
        raise UserError(
            f"cluster.gres={format_literal(c.gres)}: no node of {place} has GPUs of the kind {model}",
            suggestion(model, models)
            + (f"kinds there: {', '.join(models)}" if models else f"GPUs there have no kind: cluster.gres=gpu:{gpus}"),
        )
    largest = max(_gpus_of(group, model) for group in kinds)
    if gpus > largest == 0:
        raise UserError(
            f"cluster.gpus_per_node={gpus}: no node of {place} has GPUs",
            "take another cluster.partition or cluster.constraint, or cluster.gpus_per_node=0",
        )
    if gpus > largest:
        raise UserError(
            f"cluster.gpus_per_node={gpus}: no node of {place} has more than {largest}{f' {model}' * bool(model)}",
            f"set cluster.gpus_per_node={largest} at most, and more cluster.nodes",
        )
    cpus, largest = tasks * (c.cpus_per_task or 1), max(group.cpus for group in kinds)
    if cpus > largest:
        raise UserError(
            f"cluster.cpus_per_task={c.cpus_per_task or 1}: times {tasks} tasks is {cpus} CPUs on a node, and no node "
            f"of {place} has more than {largest}",
            f"set cluster.cpus_per_task={max(1, largest // tasks)} at most",
        )
    largest = max(group.memory_mb for group in kinds) // 1024
    if c.mem_gb and c.mem_gb > largest:
        raise UserError(
            f"cluster.mem_gb={c.mem_gb}: no node of {place} has more than {largest}",
            f"set cluster.mem_gb={largest} at most",
        )


def _request_text(c: ClusterConfig, tasks: int) -> str:
    model, gpus = _gpus(c)
    cpus = tasks * (c.cpus_per_task or 1)
    parts = [f"{gpus} {f'{model} ' * bool(model)}GPU{'s' * (gpus > 1)}"] if gpus else []
    parts += [f"{cpus} CPU{'s' * (cpus > 1)}", *([f"{c.mem_gb} GB"] if c.mem_gb else [])]
    return ", ".join(parts)
