"""Decides which node to exclude after failures, as long as enough nodes remain."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from runyard import known_causes
from runyard.cluster.slurm.queue import expand_hostlist
from runyard.known_causes import RetryAdvice
from runyard.runs.events import Failure

MAX_EXCLUDED = 5  # nodes of one job: if more fail, the nodes are hardly the cause
MAX_EXCLUDED_BLIND = 2  # the same where the number of other nodes is unknown
UP_STATES = ("idle", "mix", "alloc", "comp", "resv", "plnd", "pow")  # the beginnings of sinfo's %t


def exclusion_reason(failure: Failure, earlier: Sequence[Failure]) -> str | None:
    """Return why the node that this start failed on is to be excluded; None if it is not, or is unknown.

    Args:
        failure: The failure of this start.
        earlier: The failures of earlier starts, oldest first.
    """
    cause = known_causes.cause_of(failure.fields())
    if failure.node is None:
        return None
    if cause is not None and cause.retry in (RetryAdvice.ELSEWHERE, RetryAdvice.ONCE_ELSEWHERE):
        return str(failure.message)
    if failure.before_first_step and any(f.node == failure.node and f.before_first_step for f in earlier):
        return f"two starts ended there before their first step: {failure.message}"
    return None


def repeated_failure(failure: Failure, earlier: Sequence[Failure], *, same_node: bool) -> Failure | None:
    """Return an earlier failure with the same exception at the same step, which another start would meet again.

    None if there is none, or if the cause is a fault of the node. A signal comes from outside, and has no exception.

    Args:
        failure: The failure of this start.
        earlier: The failures of earlier starts, oldest first.
        same_node: Whether a failure on the same node counts, too; it may be that node's fault.
    """
    cause = known_causes.cause_of(failure.fields())
    if failure.exception is None or failure.step is None or (cause and cause.retry is RetryAdvice.ELSEWHERE):
        return None
    what = (failure.exception, failure.cause, failure.step)
    same = [f for f in earlier if (f.exception, f.cause, f.step) == what]
    return next((f for f in same if same_node or f.node not in (None, failure.node)), None)


@dataclass(frozen=True)
class JobNodes:
    """A job's nodes, as SLURM reports them.

    Attributes:
        node_count: How many the job needs.
        required_nodes: SLURM's list of those that it asks for; "" if any will do.
        excluded: SLURM's list of those that it excludes.
        nodes: Features and GPUs of the partition's nodes that are up, by name; None if sinfo did not answer.
    """

    node_count: int = 1
    required_nodes: str = ""
    excluded: str = ""
    nodes: dict[str, str] | None = None

    @classmethod
    def read(cls, slurm_output: str) -> JobNodes:
        """Parse the output of ``scontrol show job``, followed by lines of ``sinfo -o '%N|%t|%f|%G'``."""
        fields = dict(re.findall(r"\b(NumNodes|ReqNodeList|ExcNodeList)=(\S*)", slurm_output))
        required, excluded = (fields.get(key, "").replace("(null)", "") for key in ("ReqNodeList", "ExcNodeList"))
        nodes = {}
        for line in slurm_output.splitlines():
            name, *rest = line.split("|")
            if len(rest) == 3 and rest[0].startswith(UP_STATES) and not rest[0].endswith("*"):
                nodes[name] = "|".join(rest[1:])
        node_count = re.match(r"\d+", fields.get("NumNodes", ""))
        return cls(int(node_count[0]) if node_count else 1, required, excluded, nodes or None)

    def exclusion_objection(self, node: str, excluded_count: int) -> str | None:
        """Return why ``node`` cannot be excluded, after ``excluded_count`` others were; None if it can."""
        if node in expand_hostlist(self.required_nodes):
            return f"cluster.nodelist asks for {node}"
        if excluded_count >= (MAX_EXCLUDED if self.nodes else MAX_EXCLUDED_BLIND):
            return f"{excluded_count} nodes are left out already"
        if self.nodes is None:
            return None
        unusable = {node, *expand_hostlist(self.excluded)}
        similar = [
            name for name, kind in self.nodes.items() if kind == self.nodes.get(node, kind) and name not in unusable
        ]
        if len(similar) < self.node_count:
            return f"only {len(similar)} other nodes like it are up, and the job needs {self.node_count}"
        return None

    def excluding(self, node: str) -> str:
        """Return SLURM's list of nodes to exclude, with ``node`` added."""
        return ",".join(filter(None, [self.excluded, node]))
