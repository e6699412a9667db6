"""Information about the SLURM cluster, from its own commands: partitions, node groups, limits, accounts."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from runyard.cluster.slurm.queue import duration_s
from runyard.slurm_client import QueryError, run_query
from runyard.surroundings import user_name

SINFO_FIELDS = "%P|%a|%l|%s|%D|%c|%m|%G|%f"
QUERY_TIMEOUT_S = 10.0
ACCOUNTS_TIMEOUT_S = 3.0  # if accounting does not answer, sbatch itself still checks the account


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind in one partition.

    Attributes:
        count: How many nodes there are.
        cpus, memory_mb: CPUs and memory of each node.
        gres: Generic resources of each node: counts by name and kind, as {"gpu": {"a100": 4}}; kind "" if it has none.
        features: What ``constraint`` may ask for.
    """

    count: int
    cpus: int
    memory_mb: int
    gres: dict[str, dict[str, int]]
    features: frozenset[str]

    @property
    def description(self) -> str:
        resources = [f"{n} {name}{f' {kind}' * bool(kind)}" for name, by in self.gres.items() for kind, n in by.items()]
        return ", ".join([f"{self.cpus} CPUs", f"{self.memory_mb / 1024:.0f} GB", *resources])


@dataclass(frozen=True)
class Partition:
    """A partition that this user may see. ``limit_s`` and ``max_nodes`` are per job, None without a limit."""

    name: str
    is_up: bool
    default: bool
    limit_s: int | None
    max_nodes: int | None
    nodes: tuple[NodeGroup, ...]

    @property
    def node_count(self) -> int:
        return sum(kind.count for kind in self.nodes)


@dataclass(frozen=True)
class Association:
    """What accounting allows this user: to charge ``account``, in ``partition`` ("" for any), with these QOS."""

    account: str
    partition: str
    qos: frozenset[str]


class ClusterInfo:
    """The answers of sinfo, scontrol and sacctmgr, which are all started when this is created.

    Each property raises QueryError if its command is missing or failed.
    """

    def __init__(self) -> None:
        user = user_name() or str(os.getuid())
        self._user = user
        with ThreadPoolExecutor(3) as pool:
            self._sinfo = pool.submit(run_query, "sinfo", "--noheader", "--exact", f"--format={SINFO_FIELDS}",
                                      timeout_s=QUERY_TIMEOUT_S)  # fmt: skip
            self._config = pool.submit(run_query, "scontrol", "show", "config", timeout_s=QUERY_TIMEOUT_S)
            self._accounts = pool.submit(
                run_query, "sacctmgr", "--noheader", "--parsable2", "show", "association", f"user={user}",
                "format=Account,Partition,QOS", timeout_s=ACCOUNTS_TIMEOUT_S,
            )  # fmt: skip

    @cached_property
    def partitions(self) -> dict[str, Partition]:
        return parse_sinfo(self._sinfo.result())

    @cached_property
    def version(self) -> str:
        return self._setting("SLURM_VERSION", r"\S+")

    @cached_property
    def max_array_size(self) -> int:
        """MaxArraySize: one more than the highest index of an array's element."""
        return int(self._setting("MaxArraySize", r"\d+"))

    @cached_property
    def accounts_enforced(self) -> bool:
        return "associations" in self._setting("AccountingStorageEnforce", r"\S+")

    @cached_property
    def associations(self) -> list[Association]:
        return parse_associations(self._accounts.result())

    @cached_property
    def default_account(self) -> str:
        """The account that is charged where a job names none; "" if accounting gives none."""
        answer = run_query("sacctmgr", "--noheader", "--parsable2", "show", "user", f"name={self._user}",
                           "format=DefaultAccount", timeout_s=ACCOUNTS_TIMEOUT_S)  # fmt: skip
        return next(iter(answer.split()), "")

    @cached_property
    def requeues_by_default(self) -> bool:
        """JobRequeue: whether a job that does not say otherwise may be requeued."""
        return self._setting("JobRequeue", r"\d") != "0"

    @cached_property
    def partition_options(self) -> dict[str, dict[str, str]]:
        """What scontrol shows of each partition, as {"main": {"OverSubscribe": "EXCLUSIVE"}}."""
        return parse_partitions(run_query("scontrol", "--oneliner", "show", "partition", timeout_s=QUERY_TIMEOUT_S))

    def _setting(self, name: str, pattern: str) -> str:
        match = re.search(rf"^{name}\s*= ({pattern})", self._config.result(), re.MULTILINE)
        if match is None:
            raise QueryError(f"`scontrol show config` does not say {name}")
        return match[1]


def parse_sinfo(text: str) -> dict[str, Partition]:
    """Return partitions by name from sinfo's lines of ``SINFO_FIELDS``: one for each kind of node in each partition."""
    partitions: dict[str, Partition] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != 9:
            raise QueryError(f"sinfo printed a line that cannot be read: {line[:80]}")
        name, state, limit, size, count, cpus, memory, gres, features = fields
        bare_name = name.rstrip("*")
        max_nodes = size.rpartition("-")[2]
        nodes = NodeGroup(
            count=int(count),
            cpus=int(cpus.rstrip("+")),
            memory_mb=int(memory.rstrip("+")),
            gres=parse_gres(gres),
            features=frozenset(features.split(",")) - {"(null)"},
        )
        earlier_nodes = partitions[bare_name].nodes if bare_name in partitions else ()
        partitions[bare_name] = Partition(
            bare_name, state == "up", name.endswith("*"), duration_s(limit),
            int(max_nodes) if max_nodes.isdigit() else None, (*earlier_nodes, nodes),
        )  # fmt: skip
    return partitions


def parse_partitions(text: str) -> dict[str, dict[str, str]]:
    """Return the options of each partition from the lines of ``scontrol --oneliner show partition``."""
    lines = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines()]
    return {options["PartitionName"]: options for options in lines if "PartitionName" in options}


def parse_gres(text: str) -> dict[str, dict[str, int]]:
    """Parse sinfo's ``gpu:a100:4(S:0-1),tmpdisk:100G`` to {"gpu": {"a100": 4}, "tmpdisk": {"": 107374182400}}."""
    counts: dict[str, dict[str, int]] = {}
    for part in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *tokens = [token for token in part.split(":") if token != "no_consume"]
        number = re.fullmatch(r"(\d+)([KMGT]?)", tokens[-1]) if tokens else None
        if number is not None:
            kind = tokens[0] if len(tokens) > 1 else ""
            scale = 1024 ** "_KMGT".find(number[2]) if number[2] else 1
            counts.setdefault(name, {}).setdefault(kind, 0)
            counts[name][kind] += int(number[1]) * scale
    return counts


def parse_associations(text: str) -> list[Association]:
    """Return the associations in sacctmgr's lines of Account|Partition|QOS."""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    return [
        Association(account, partition, frozenset(filter(None, qos.split(",")))) for account, partition, qos in rows
    ]
