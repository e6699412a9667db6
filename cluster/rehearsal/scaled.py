"""Scales an experiment down to what this machine can rehearse: tiny data, few steps, few tasks."""

from __future__ import annotations

import os
from collections.abc import Callable

import psutil

from runyard.cluster.job.train_job import tasks_per_node
from runyard.cluster.rehearsal.slurm_conf import CPUS, MEMORY_MB, PARTITIONS
from runyard.config.compose import Composed, compose
from runyard.config.fields import format_literal
from runyard.config.schema import SETTINGS, ClusterConfig
from runyard.config.setting import REFUSED, settings_of
from runyard.errors import UserError

REHEARSED = {name: known.rehearsed for name, known in SETTINGS.items() if known.rehearsed not in ("", REFUSED)}
EPOCHS, STEPS_PER_EPOCH = int(REHEARSED["epochs"]), 6  # enough for three interruptions, each after progress was saved
IMAGES_PER_TASK = 4  # in a micro-batch
MEMORY_PER_TASK_GB = 0.7  # measured with experiment=starter and paper
MIN_TASKS = 3  # two numbers have the same sum in either order, so two ranks could not show a changed order of summation
MAX_TASKS_PER_CORE = 4  # more starve each other until ranks time out and give each other up


def scale_down(overrides: list[str], report: Callable[[str], None]) -> Composed:
    """Compose the experiment with tiny synthetic data, few steps, no W&B, and as many tasks as this machine can run.

    A task takes the place of a GPU. ``report`` is called with a line if there are other tasks than requested, or GPUs.

    Raises:
        UserError: the overrides are invalid, name another cluster, or ask for what the temporary cluster cannot give.
    """
    stripped = [o.lstrip("+") for o in overrides]
    if other := next((o for o in stripped if o.startswith("cluster=") and o != "cluster=rehearsal"), None):
        raise UserError(f"{other}: a rehearsal has a temporary cluster of its own", "leave that out")
    requested = compose([*(o for o in stripped if not o.startswith("cluster=")), "cluster=rehearsal"])
    config = requested.config
    nodes, tasks = fit_tasks(config.cluster, max_tasks(), report)
    check_sandbox_limits(config.cluster, tasks)
    batch = nodes * tasks * config.accumulate * IMAGES_PER_TASK
    warmup = min(config.schedule.warmup_epochs, EPOCHS - 1)
    tiny = REHEARSED | {
        "data": "synthetic",
        "tracking": "none",
        "data.samples": f"[{batch * STEPS_PER_EPOCH},{2 * batch}]",
        "data.image_size": str(config.data.image_size),
        "batch_size": str(batch),
        "schedule.warmup_epochs": f"{warmup:g}",
        "cluster.nodes": str(nodes),
        "cluster.tasks_per_node": str(tasks),
    }
    kept = [o for o in requested.overrides if not o.startswith(tuple(tiny))]
    return compose([*kept, *(f"{name}={value}" for name, value in tiny.items())])


def max_tasks() -> int:
    """Return how many tasks this machine can run, by its free memory and its cores; at least ``MIN_TASKS``."""
    free_gb = psutil.virtual_memory().available / 1e9
    return max(MIN_TASKS, min(int(free_gb / MEMORY_PER_TASK_GB), MAX_TASKS_PER_CORE * len(os.sched_getaffinity(0))))


def fit_tasks(cluster: ClusterConfig, task_limit: int, report: Callable[[str], None]) -> tuple[int, int]:
    """Return the number of nodes and of tasks per node, of at most ``task_limit`` tasks in all.

    Tasks per node are reduced before nodes are. ``report`` is called with a line if they differ from the request.
    """
    requested = tasks_per_node(cluster)
    nodes = min(cluster.nodes, task_limit)
    tasks = min(max(requested, -(-MIN_TASKS // nodes)), task_limit // nodes)
    if cluster.gpus_per_node or (nodes, tasks) != (cluster.nodes, requested):
        gpus = f", {cluster.gpus_per_node} GPUs" if cluster.gpus_per_node else ""
        too_few = "three ranks show in what order sums are taken, two do not"
        reason = too_few if tasks > requested else f"this machine carries {task_limit} tasks"
        report(
            f"asked for: {cluster.nodes} nodes of {requested} tasks{gpus} each; "
            f"rehearsed: {nodes} nodes of {tasks} tasks each, without GPUs ({reason})"
        )
    return nodes, tasks


def check_sandbox_limits(cluster: ClusterConfig, tasks: int) -> None:
    """Check, before the cluster is started, for settings that it would refuse or never fulfill.

    Raises:
        UserError: a setting asks for what the temporary cluster cannot give.
    """
    for name, known in settings_of(ClusterConfig).items():
        if known.rehearsed == REFUSED and (value := getattr(cluster, name)):
            raise UserError(
                f"cluster.{name}={format_literal(value)}: the temporary cluster has no such name", "leave it out"
            )
    for partition in (cluster.partition or PARTITIONS[0]).split(","):
        if partition not in PARTITIONS:
            raise UserError(
                f"cluster.partition={format_literal(cluster.partition)}: the temporary cluster has "
                f"{', '.join(PARTITIONS)}",
                "leave it out",
            )
    if not cluster.requeue:
        raise UserError("cluster.requeue=false: a rehearsal tests that the run is requeued", "leave it out")
    if (cluster.cpus_per_task or 1) * tasks > CPUS:
        raise UserError(
            f"cluster.cpus_per_task={cluster.cpus_per_task}: with {tasks} tasks more than the {CPUS} CPUs of a node of "
            "the temporary cluster",
            "leave it out",
        )
    if (cluster.mem_gb or 0) * 1024 > MEMORY_MB:
        raise UserError(
            f"cluster.mem_gb={cluster.mem_gb}: a node of the temporary cluster has {MEMORY_MB // 1024} GB",
            "leave it out",
        )
