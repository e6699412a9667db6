"""Which node a run is to leave out: by how its starts ended there, and as far as enough others are left."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from runyard import known_causes
from runyard.cluster.slurm.queue import expand_hostlist
from runyard.known_causes import RetryAdvice
from runyard.runs.journal import Row

MAX_EXCLUDED = 5  # nodes of one job: where more fail it is hardly the nodes
MAX_EXCLUDED_BLIND = 2  # where nobody says how many others there are
UP_STATES = ("idle", "mix", "alloc", "comp", "resv", "plnd", "pow")  # as sinfo's %t begins


def exclusion_reason(failure: Row, earlier: Sequence[Row]) -> str | None:
    """Why the node that this start failed on is to be left out; None if it is not, or nobody knows which it was.

    Args:
        failure: As the journal keeps it of this start.
        earlier: Those of earlier starts, oldest first.
    """
    node, cause = failure.get("node"), known_causes.cause_of(failure)
    if node is None:
        return None
    if cause is not None and cause.retry in (RetryAdvice.ELSEWHERE, RetryAdvice.ONCE_ELSEWHERE):
        return str(failure["message"])
    previous = [f for f in earlier if f.get("node") == node and f.get("before_first_step")]
    if failure.get("before_first_step") and previous:
        return f"two starts ended there before their first step: {failure['message']}"
    return None


def repeated_failure(failure: Row, earlier: Sequence[Row], *, same_node: bool) -> Row | None:
    """An earlier start that met the same exception at the same step: this one would do so again. None if there is none.

    Of a fault of the node itself it says nothing. A signal comes from outside, and has no exception.

    Args:
        same_node: Whether one on the same node counts, too, which may be that node's fault.
    """
    cause = known_causes.cause_of(failure)
    if (
        failure.get("exception") is None
        or failure.get("step") is None
        or (cause and cause.retry is RetryAdvice.ELSEWHERE)
    ):
        return None
    same = [f for f in earlier if all(f.get(key) == failure.get(key) for key in ("exception", "cause", "step"))]
    return next((f for f in same if same_node or f.get("node") not in (None, failure.get("node"))), None)


@dataclass(frozen=True)
class JobNodes:
    """A job's nodes, as SLURM says: how many it needs, which it was promised, which it leaves out, which there are.

    Attributes:
        nodes: Features and GPUs of the partition's nodes that are up, by name; None where sinfo did not answer.
    """

    node_count: int = 1
    required_nodes: str = ""
    excluded: str = ""
    nodes: dict[str, str] | None = None

    @classmethod
    def read(cls, slurm_output: str) -> JobNodes:
        """From ``scontrol show job`` and lines of ``sinfo -o '%N|%t|%f|%G'``, one below the other."""
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
        """Why ``node`` cannot be left out, ``excluded_count`` being how many were before; None if it can."""
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
        """SLURM's list of nodes to leave out, with ``node``."""
        return ",".join(filter(None, [self.excluded, node]))
