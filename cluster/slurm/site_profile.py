"""A cluster's profile from what its SLURM says of itself: the text of a file of configs/cluster, with its reasons."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

import yaml

from runyard.cluster.slurm.cluster_info import ClusterInfo, NodeGroup, Partition
from runyard.errors import UserError
from runyard.printable import printable
from runyard.slurm_client import QueryError

SHORT_MIN = 60  # short jobs start sooner, and what requeues goes on in another one
NO_LIMIT_MIN = 1440  # where neither the partition nor a requeue sets one
CPU_TASK_CPUS = 8  # of a task without a GPU
SLICE = re.compile(r"\d+g\.\d+gb", re.IGNORECASE)  # of a GPU, by MIG: processes on two of them cannot use NCCL


@dataclass
class SiteProfile:
    """Settings under ``cluster``, each with the comment lines above it, and what is to be known before its use."""

    name: str
    settings: dict[str, object] = field(default_factory=dict)
    comments: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, setting: str, value: object, *comment: str) -> None:
        self.settings[setting] = value
        self.comments[setting] = list(comment)

    def text(self, version: str) -> str:
        """Return the file's text."""
        head = f"# Written by `runyard profile new {self.name}` from what {version} said; to be edited."
        lines = [head, "defaults:", "  - slurm", "  - _self_", "", f"name: {self.name}"]
        for setting, value in self.settings.items():
            lines += ["", *(f"# {printable(line)}".replace("\t", " ") for line in self.comments[setting])]
            lines.append(f"{setting}: {_literal(value)}")
        return "\n".join(lines) + "\n"


def site_profile(name: str, cluster: ClusterInfo, partition: str | None, account: str | None) -> SiteProfile:
    """Return the profile of the cluster for ``partition``, by default the cluster's own default.

    Raises:
        UserError: there is no such partition, or the account is not one of the user's.
        QueryError: SLURM does not list its partitions.
    """
    profile = SiteProfile(name)
    chosen = _partition(profile, cluster.partitions, partition)
    _account(profile, cluster, chosen.name, account)
    options = _options(cluster, chosen.name)
    _sizes(profile, chosen, options)
    _limits(profile, cluster, chosen)
    return profile


def _partition(profile: SiteProfile, known: dict[str, Partition], asked: str | None) -> Partition:
    if not known:
        raise QueryError("sinfo lists no partition that you may see")
    if asked is not None and asked not in known:
        raise UserError(f"--partition {asked}: no such partition here", f"partitions here: {', '.join(known)}")
    # None is the default: some other is better than a job that sbatch refuses.
    usable = [p for p in known.values() if p.is_up] or list(known.values())
    default = next((p for p in known.values() if p.default), None)
    chosen = known[asked] if asked else default or next(filter(_gpu_groups, usable), usable[0])
    if asked is None and default is None:
        what = "with GPUs" if _gpu_groups(chosen) else "that is up"
        profile.notes.append(f"sinfo: no default partition; {chosen.name} is the first {what}")
    others = [p for p in known.values() if p is not chosen]
    with_gpus = [p.name for p in others if _gpu_groups(p)]
    if not _gpu_groups(chosen) and with_gpus:
        profile.notes.append(f"partition {chosen.name} has no GPU; for one: --partition {with_gpus[0]}")
    if not chosen.is_up:
        profile.notes.append(f"sinfo: partition {chosen.name} is down")
    why = "asked for" if asked else "the default" if default else "no default here; the first that fits"
    lines = [f"sinfo: {why}: {_described(chosen)}", *(f"  or {p.name}: {_described(p)}" for p in others)]
    profile.add("partition", chosen.name, *lines)
    return chosen


def _account(profile: SiteProfile, cluster: ClusterInfo, partition: str, asked: str | None) -> None:
    try:
        rows = cluster.associations
    except QueryError as error:
        profile.notes.append(f"sacctmgr says nothing of your accounts ({error})")
        profile.add("account", asked, f"{profile.notes[-1]}; null: sbatch takes your default, if it wants one")
        return
    valid = [row for row in rows if row.partition in ("", partition)]
    names = list(dict.fromkeys(row.account for row in valid))
    if asked is not None and asked.lower() not in names:
        raise UserError(f"--account {asked}: not one of yours in partition {partition}",
                        f"yours are {', '.join(names) or 'none'}")  # fmt: skip
    try:
        default = cluster.default_account
    except QueryError:
        default = ""
    chosen = asked or (default if default in names else names[0] if len(names) == 1 else None)
    others = [name for name in names if name != (chosen or "").lower()]
    why = "asked for" if asked else "your default" if chosen == default else "your only one"
    if chosen is None:
        why = "no default of yours; null: sbatch's own choice" if names else "no account of yours; null asks for none"
    said = [f"sacctmgr: {why}" + (f"; also {', '.join(others)}" if others else "")]
    if qos := sorted(set().union(*(row.qos for row in valid))):
        said.append(f"  qos, null for the default: {', '.join(qos)}")
    profile.add("account", chosen, *said)


def _options(cluster: ClusterInfo, partition: str) -> dict[str, str]:
    try:
        return cluster.partition_options.get(partition, {})
    except QueryError:
        return {}


def _sizes(profile: SiteProfile, partition: Partition, options: dict[str, str]) -> None:
    """Add GPUs, CPUs and memory, in the proportion of the smallest node that is meant."""
    whole = options.get("OverSubscribe", "").startswith("EXCLUSIVE")
    limit = options.get("MaxCPUsPerNode", "")
    most_cpus = int(limit) if limit.isdigit() and int(limit) else None
    if nodes := _gpu_groups(partition):
        _gpu_sizes(profile, nodes, whole, most_cpus)
    else:
        _cpu_sizes(profile, partition, whole, most_cpus)
    if whole:
        profile.comments["gpus_per_node"].append("scontrol: a job has its nodes to itself (OverSubscribe=EXCLUSIVE)")
        profile.add("extra", {"mem": 0}, "all of a node's memory, which no other job can use")


def _cpu_sizes(profile: SiteProfile, partition: Partition, whole: bool, most_cpus: int | None) -> None:
    nodes = partition.nodes
    cpus = min(min(group.cpus, most_cpus or group.cpus) for group in nodes)
    taken = cpus if whole else min(cpus, CPU_TASK_CPUS)
    memory_gb = min(group.memory_mb * taken // group.cpus for group in nodes) // 1024
    profile.add("gpus_per_node", 0, f"sinfo: no GPU in partition {partition.name}")
    profile.add("cpus_per_task", taken, f"of {_range([group.cpus for group in nodes])} CPUs of a node, in one task")
    if memory_gb and not whole:
        profile.add("mem_gb", memory_gb, "the memory of as many CPUs")


def _gpu_sizes(profile: SiteProfile, nodes: list[NodeGroup], whole: bool, most_cpus: int | None) -> None:
    """Add sizes for the kind of GPU of which there are most: of nodes that jobs share, one GPU."""
    kind = _most_usual_kind(nodes)
    having = [group for group in nodes if kind in group.gres["gpu"]]
    counts = [group.gres["gpu"][kind] for group in having]
    there = sorted({f"gpu:{k}:{n}" if k else f"gpu:{n}" for g in nodes for k, n in g.gres["gpu"].items()})
    profile.add("gpus_per_node", min(counts) if whole else 1, f"sinfo: nodes have {', '.join(there)}")
    if features := sorted(set().union(*(group.features for group in nodes))):
        profile.comments["gpus_per_node"].append(f"  features that constraint may name: {', '.join(features)}")
    if kind:
        profile.add("gres", f"gpu:{kind}:${{.gpus_per_node}}", "as this cluster names them; another kind, another gres")
    if SLICE.search(kind):
        profile.comments["gres"].append("a slice of a GPU (MIG): one a job, as NCCL does not join slices")
    totals = [sum(group.gres["gpu"].values()) for group in having]
    shares = [min(g.cpus, most_cpus or g.cpus) // total for g, total in zip(having, totals, strict=True)]
    shown = f"a GPU's share of {_range([group.cpus for group in having])} CPUs for {_range(totals)} GPUs"
    limit = f", at most {most_cpus} a job (MaxCPUsPerNode)" if most_cpus else ""
    profile.add("cpus_per_task", max(1, min(shares)), shown + limit)
    memory_gb = min(group.memory_mb // total for group, total in zip(having, totals, strict=True)) // 1024
    if memory_gb and not whole:
        sizes = _range([group.memory_mb // 1024 for group in having])
        line = f"a GPU's share of {sizes} GB; to give cluster.mem_gb, add cluster.extra.mem-per-gpu=null"
        profile.add("extra", {"mem-per-gpu": f"{memory_gb}G"}, line)


def _limits(profile: SiteProfile, cluster: ClusterInfo, partition: Partition) -> None:
    try:
        by_default = cluster.requeues_by_default
    except QueryError as error:
        by_default, said = True, f"scontrol does not say whether jobs may be requeued ({error})"
    else:
        said = "scontrol: JobRequeue=1, jobs may be requeued"
    if not by_default:
        said = "scontrol: JobRequeue=0, only jobs that ask for it are requeued; true asks for it"
        profile.notes.append("JobRequeue=0 here: at its time limit a run stops, saved, and `runyard resume` goes on")
    longest = None if partition.limit_s is None else max(2, partition.limit_s // 60)
    minutes = min(longest or (SHORT_MIN if by_default else NO_LIMIT_MIN), SHORT_MIN if by_default else 525_600)
    why = "short jobs start sooner, and the run goes on in another" if by_default else "with no requeue, in one job"
    most = f"sinfo: {_time(partition.limit_s)} in partition {partition.name}"
    profile.add("timeout_min", minutes, f"{most}; {why}")
    profile.add("requeue", by_default, said)


def _gpu_groups(partition: Partition) -> list[NodeGroup]:
    return [group for group in partition.nodes if any(group.gres.get("gpu", {}).values())]


def _most_usual_kind(nodes: list[NodeGroup]) -> str:
    """Return the kind of GPU of which there are most, whole ones before slices."""
    counts: dict[str, int] = {}
    for group in nodes:
        for kind, count in group.gres["gpu"].items():
            counts[kind] = counts.get(kind, 0) + count * group.count
    return max(counts, key=lambda kind: (SLICE.search(kind) is None, counts[kind]))


def _described(partition: Partition) -> str:
    nodes = " and ".join(
        f"{group.count} node{'s' * (group.count != 1)} of {group.description}" for group in partition.nodes
    )
    most = f", at most {partition.max_nodes} a job" if partition.max_nodes else ""
    return f"{nodes}{most}; {_time(partition.limit_s)}{'' if partition.is_up else '; down'}"


def _time(limit_s: int | None) -> str:
    if limit_s is None:
        return "no limit"
    return f"{limit_s / 3600:g} h" if limit_s % 3600 == 0 else f"{limit_s // 60} min"


def _range(numbers: list[int]) -> str:
    return str(numbers[0]) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"


def _literal(value: object) -> str:
    """Return ``value`` as YAML in one line; text that YAML would read as something else, in quotes."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_literal(item)}' for key, item in value.items())}}}"
    if isinstance(value, str) and re.fullmatch(r"\d+G|[A-Za-z][\w.:${}-]*", value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value)
