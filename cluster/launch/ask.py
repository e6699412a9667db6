"""Asks SLURM when a submission would start, as it is and in other sizes, before anything is submitted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from runyard.cluster.launch.checks.preflight import planned_job
from runyard.cluster.launch.checks.slurm_checks import refusal
from runyard.cluster.launch.submit import SubmissionPlan, tasks_and_gpus
from runyard.cluster.slurm.cluster_info import ClusterInfo
from runyard.cluster.slurm.estimate import StartEstimate, estimate_start
from runyard.config.schema import Config, check_rules, check_world_size
from runyard.errors import UserError
from runyard.slurm_client import QueryError, SlurmRejected, SlurmUnavailable

NODE_COUNTS = (1, 2, 4)
TIME_DIVISORS = (2, 4)  # of the time limit: a shorter job may fit into a gap
MIN_TIMEOUT_MIN = 10
PARALLEL_QUERIES = 4  # at the same time, to go easy on the controller


@dataclass(frozen=True)
class Option:
    """One way to submit.

    Attributes:
        change: The override that makes it; "" for the submission as it was asked for.
        config: Its configuration.
        estimate: When SLURM would start it, None if it does not say.
        problem: Why SLURM refuses it, None if it does not.
    """

    change: str
    config: Config
    estimate: StartEstimate | None = None
    problem: str | None = None

    @property
    def gpu_hours(self) -> float:
        """GPU-hours until the time limit."""
        cluster = self.config.cluster
        return cluster.timeout_min / 60 * cluster.nodes * tasks_and_gpus(cluster)[1]

    def row(self) -> dict[str, object]:
        """Return it as ``--json`` prints it."""
        estimate, cluster = self.estimate, self.config.cluster
        return {
            "change": self.change,
            "nodes": cluster.nodes,
            "timeout_min": cluster.timeout_min,
            "gpu_hours": self.gpu_hours,
            "start": None if estimate is None else estimate.start,
            "wait_s": None if estimate is None else max(0.0, estimate.start - time.time()),
            "partition": None if estimate is None else estimate.partition,
            "on": [] if estimate is None else list(estimate.nodes),
            "problem": self.problem,
        }


def ask(plan: SubmissionPlan) -> list[Option]:
    """Return when SLURM would start ``plan`` and its alternatives, first the plan itself.

    Raises:
        UserError: there is no queue to ask about.
        QueryError: SLURM does not answer.
    """
    if plan.config.cluster.launcher == "local":
        raise UserError("--ask: cluster=local has no queue, its run starts at once", "add cluster=slurm")
    options = [Option("", plan.config), *_alternatives(plan.config)]
    with ThreadPoolExecutor(PARALLEL_QUERIES) as pool:
        return list(pool.map(lambda option: _asked(option, plan), options))


def _asked(option: Option, plan: SubmissionPlan) -> Option:
    runs = min(len(plan.configs), option.config.cluster.runs_per_task)
    try:
        script = planned_job([option.config] * runs, plan.after).script()
        return dataclasses.replace(option, estimate=estimate_start(script))
    except SlurmUnavailable:
        raise
    except SlurmRejected as error:
        return dataclasses.replace(option, problem=refusal(option.config.cluster, str(error)).problem)


def _alternatives(config: Config) -> Iterator[Option]:
    """Yield what may start sooner: other numbers of nodes, shorter limits, other partitions and constraints."""
    cluster = config.cluster
    counts = [count for count in NODE_COUNTS if count != cluster.nodes and cluster.nodelist is None]
    shorter = [cluster.timeout_min // divisor for divisor in TIME_DIVISORS]
    # h200|l40s: a node of either is asked for; one kind alone costs another amount, and SLURM says when it comes
    features = (cluster.constraint or "").split("|")
    kinds = [feature for feature in features if len(features) > 1 and feature.isidentifier()]
    changes = [(f"nodes={count}", dataclasses.replace(cluster, nodes=count)) for count in counts]
    changes += [
        (f"timeout_min={minutes}", dataclasses.replace(cluster, timeout_min=minutes))
        for minutes in shorter
        if minutes >= MIN_TIMEOUT_MIN
    ]
    partitions = _partitions(cluster.partition)
    changes += [(f"partition={name}", dataclasses.replace(cluster, partition=name)) for name in partitions]
    changes += [(f"constraint={kind}", dataclasses.replace(cluster, constraint=kind)) for kind in kinds]
    for change, changed in changes:
        other = dataclasses.replace(config, cluster=changed)
        try:
            check_rules(other)
            check_world_size(other, tasks_and_gpus(other.cluster)[0] * other.cluster.nodes)
        except UserError:  # as a batch that does not divide among so many ranks
            continue
        yield Option(f"cluster.{change}", other)


def _partitions(named: str | None) -> list[str]:
    """Return the partitions to ask about: where the profile leaves the choice to the cluster, there is none to make."""
    if named is None:
        return []
    try:
        return [name for name, partition in ClusterInfo().partitions.items() if partition.is_up and name != named]
    except QueryError:
        return [name for name in named.split(",") if name != named]
