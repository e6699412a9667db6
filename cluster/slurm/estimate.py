"""SLURM's own estimate of when a job would start, from ``sbatch --test-only``, which submits nothing."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from runyard.cluster.slurm.job_states import format_nodes, format_span, format_time
from runyard.cluster.slurm.queue import expand_hostlist, parse_time
from runyard.slurm_client import run_query

TEST_TIMEOUT_S = 30.0
ANSWER = re.compile(
    r"Job \d+ to start at (\S+)(?: using \d+ processors)?(?: on (?:nodes )?(\S+))?(?: in partition (\S+))?"
)
AT_ONCE_S = 60.0  # an estimate as near as this means that nothing is waited for


@dataclass(frozen=True)
class StartEstimate:
    """When a job would start if it were submitted now.

    Attributes:
        start: In unix seconds.
        nodes: The nodes that SLURM would give it.
        partition: The partition that it would start in; "" before SLURM 20.11, which does not say.
    """

    start: float
    nodes: tuple[str, ...] = ()
    partition: str = ""

    @property
    def text(self) -> str:
        """A phrase for messages: ``at 22:31 (in 2 h 05 min) on node1,node2 in partition gpu``."""
        now = time.time()
        wait_s = self.start - now
        when = "at once" if wait_s < AT_ONCE_S else f"at {format_time(self.start, now)} (in {format_span(wait_s)})"
        return when + (f" on {format_nodes(self.nodes)}" if self.nodes else "") + self._place

    @property
    def _place(self) -> str:
        return f" in partition {self.partition}" if self.partition else ""


def estimate_start(script: str) -> StartEstimate | None:
    """Return when the job of this batch script would start; None if sbatch takes it and does not say when.

    Raises:
        SlurmRejected: sbatch would refuse it.
        QueryError: there is no answer.
    """
    said = run_query("sbatch", "--test-only", timeout_s=TEST_TIMEOUT_S, stdin=script, with_stderr=True)
    return parse_estimate(said)


def parse_estimate(said: str) -> StartEstimate | None:
    """Return the estimate in what ``sbatch --test-only`` prints, which may have other lines."""
    match = ANSWER.search(said)
    start = parse_time(match[1]) if match is not None else None
    if match is None or start is None:
        return None
    return StartEstimate(start, expand_hostlist(match[2] or ""), (match[3] or "").rstrip("."))
