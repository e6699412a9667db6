"""What a SLURM cluster is made of, as its own commands tell: partitions, kinds of nodes, limits, and whose accounts."""

from __future__ import annotations

import os
import pwd
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from runyard.cluster.slurm.queue import duration_s
from runyard.slurm_client import QueryError, run_query

SINFO_FIELDS = "%P|%a|%l|%s|%D|%c|%m|%G|%f"
QUERY_TIMEOUT_S = 10.0
ACCOUNTS_TIMEOUT_S = 3.0  # without the accounting's answer sbatch itself still says what it thinks


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind in one partition.

    Attributes:
        count: How many.
        cpus, memory_mb: Of each.
        gres: Of each: how many of a thing by its name and kind, as {"gpu": {"a100": 4}}; kind "" where it has none.
        features: What ``constraint`` may ask for.
    """

    count: int
    cpus: int
    memory_mb: int
    gres: dict[str, dict[str, int]]
    features: frozenset[str]

    @property
    def description(self) -> str:
        things = [f"{n} {name}{f' {kind}' * bool(kind)}" for name, by in self.gres.items() for kind, n in by.items()]
        return ", ".join([f"{self.cpus} CPUs", f"{self.memory_mb / 1024:.0f} GB", *things])


@dataclass(frozen=True)
class Partition:
    """A partition that this user may see. ``limit_s`` and ``max_nodes`` are per job; None: no limit."""

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
    """What accounting lets this user do: charge ``account``, in ``partition`` ("": in any), with these QOS."""

    account: str
    partition: str
    qos: frozenset[str]


class ClusterInfo:
    """The answers of sinfo, scontrol and sacctmgr, asked for all at once when it is made.

    Each property raises CannotTell where its command is missing or failed.
    """

    def __init__(self) -> None:
        user = pwd.getpwuid(os.getuid()).pw_name
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

    def _setting(self, name: str, pattern: str) -> str:
        found = re.search(rf"^{name}\s*= ({pattern})", self._config.result(), re.MULTILINE)
        if found is None:
            raise QueryError(f"`scontrol show config` does not say {name}")
        return found[1]


def parse_sinfo(text: str) -> dict[str, Partition]:
    """Partitions by name, from sinfo's lines of ``SINFO_FIELDS``: one for each kind of node in each partition."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != 9:
            raise QueryError(f"sinfo printed a line that cannot be read: {line[:80]}")
        name, state, limit, size, count, cpus, memory, gres, features = fields
        named = name.rstrip("*")
        most = size.rpartition("-")[2]
        nodes = NodeGroup(
            count=int(count),
            cpus=int(cpus.rstrip("+")),
            memory_mb=int(memory.rstrip("+")),
            gres=parse_gres(gres),
            features=frozenset(features.split(",")) - {"(null)"},
        )
        before = found[named].nodes if named in found else ()
        found[named] = Partition(
            named, state == "up", name.endswith("*"), duration_s(limit), int(most) if most.isdigit() else None,
            (*before, nodes),
        )  # fmt: skip
    return found


def parse_gres(text: str) -> dict[str, dict[str, int]]:
    """sinfo's ``gpu:a100:4(S:0-1),tmpdisk:100G`` as {"gpu": {"a100": 4}, "tmpdisk": {"": 107374182400}}."""
    found: dict[str, dict[str, int]] = {}
    for part in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *rest = [word for word in part.split(":") if word != "no_consume"]
        number = re.fullmatch(r"(\d+)([KMGT]?)", rest[-1]) if rest else None
        if number is not None:
            kind = rest[0] if len(rest) > 1 else ""
            scale = 1024 ** "_KMGT".find(number[2]) if number[2] else 1
            found.setdefault(name, {}).setdefault(kind, 0)
            found[name][kind] += int(number[1]) * scale
    return found


def parse_associations(text: str) -> list[Association]:
    """From sacctmgr's lines of Account|Partition|QOS."""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    return [Association(account, part, frozenset(filter(None, qos.split(",")))) for account, part, qos in rows]
