"""Prints what a submission would be: the exact batch script, its size and cost, and what differs from the defaults."""

from __future__ import annotations

import json

from runyard.cluster.launch.checks.preflight import planned_job
from runyard.cluster.launch.submit import SubmissionPlan, tasks_and_gpus
from runyard.config.compose import Composed, compose
from runyard.config.fields import format_literal
from runyard.config.schema import config_to_dict
from runyard.runs.identity import Change, changed_settings


def print_plan(plan: SubmissionPlan, *, as_json: bool) -> None:
    """Print the plan, and create nothing."""
    differing = differences(plan.configs[0])
    on_slurm = plan.config.cluster.launcher == "slurm"
    script = planned_job([point.config for point in plan.configs], plan.after).script() if on_slurm else None
    tasks, gpus = tasks_and_gpus(plan.config.cluster)
    jobs = -(-len(plan.configs) // plan.config.cluster.runs_per_task) * plan.config.cluster.chain
    hours = plan.config.cluster.timeout_min / 60 * plan.config.cluster.nodes * jobs
    if as_json:
        facts = {"script": script, "config": config_to_dict(plan.config), "differences": differing}
        cost = {"points": len(plan.configs), "node_hours": hours, "gpu_hours": hours * gpus}
        print(json.dumps(facts | cost))
        return
    print(script or "no batch script: cluster=local starts processes on this machine", end="\n\n")
    print(_describe_size(plan, tasks, gpus, hours), end="\n\n")
    print("differs from the defaults:")
    for name, (default, value) in differing.items():
        print(f"  {name}: {format_literal(default)} -> {format_literal(value)}")
    for point in plan.configs[1:]:
        varied = changed_settings(plan.configs[0].values, point.values)
        print("a further point:", ", ".join(f"{name}={format_literal(value)}" for name, (_, value) in varied.items()))
    print("nothing was submitted (--dry-run)")


def differences(point: Composed) -> dict[str, Change]:
    """Return the settings that differ from the defaults, with both values; without those of the default's network."""
    changed = changed_settings(compose([]).values, point.values)
    return {name: change for name, change in changed.items() if not name.startswith("model.") or _has(point, name)}


def _has(point: Composed, setting: str) -> bool:
    return setting.removeprefix("model.") in point.values["model"]


def _describe_size(plan: SubmissionPlan, tasks: int, gpus: int, hours: float) -> str:
    c = plan.config.cluster
    images_per_task, runs = plan.config.batch_size // (tasks * c.nodes), len(plan.configs)
    points = f"{runs} runs, at most {c.array_parallelism} at once, each on " if runs > 1 else ""
    if c.runs_per_task > 1:
        jobs, tasks = -(-runs // c.runs_per_task), min(runs, c.runs_per_task)
        points = f"{runs} runs in {jobs} job{'s' * (jobs > 1)}, at most {c.array_parallelism} jobs at once, each on "
    nodes = f"{c.nodes} node{'s' * (c.nodes > 1)}" if c.launcher == "slurm" else "this machine"
    cost = f"{hours * gpus:g} GPU-hours" if gpus else f"{hours * tasks * (c.cpus_per_task or 1):g} core-hours"
    return (
        f"{points}{nodes}, {tasks} task{'s' * (tasks > 1)} and {gpus} GPU{'s' * (gpus != 1)} on each, "
        f"{images_per_task} images of the global batch {plan.config.batch_size} per task; "
        f"at most {f'{c.chain} jobs, one after another, of ' if c.chain > 1 else ''}{c.timeout_min} min and {cost}"
        f"{' until the first time limit' if c.requeue else ''}"
    )
