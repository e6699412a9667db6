"""All checks of a submission: those of ``submit``, and slower ones of hashes, networks, quotas and a compute node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from runyard.cluster.launch.checks import preflight, storage
from runyard.cluster.launch.checks.check import Check, CheckContext, Question, run_check
from runyard.cluster.launch.checks.network import network_is_there
from runyard.cluster.launch.checks.node_job import NodeJob
from runyard.cluster.monitor.run_status import CLOCK_SKEW_S
from runyard.data import manifest
from runyard.errors import UserError
from runyard.slurm_client import QueryError
from runyard.tracking.route import route_to
from runyard.tracking.wandb import connection

REPORTED_PACKAGES = ("torch", "torchvision", "ffcv", "numpy", "wandb")  # whose versions are shown


def run_all_checks(
    context: CheckContext, on_start: Callable[[str], None], *, job: bool, wait_s: float
) -> Iterator[Check]:
    """Run all checks, one after the other.

    Args:
        on_start: Called with the name of each check before it runs.
        job: Whether to run a job on a compute node (or a process here, without SLURM).
        wait_s: How long that job may wait for a node.
    """
    checks = [*preflight.questions(context), *slow_checks()]
    if job:
        checks += node_checks(NodeJob(context, wait_s))
    for name, question in checks:
        on_start(name)
        yield run_check(name, question, context)


def slow_checks() -> list[tuple[str, Question]]:
    """Return the slow checks that run on this machine."""
    return [
        ("data hashes", data_is_unchanged),
        ("network's step", network_is_there),
        ("W&B", wandb_reachable),
        ("files left", storage.free_inodes),
        ("quota", storage.quota),
        ("purge", storage.purge_risk),
    ]


def data_is_unchanged(context: CheckContext) -> str:
    """Check that every file of the data has the sha256 that the manifest gives."""
    folder = manifest.dataset_dir(context.config.data)
    dataset = manifest.load_manifest(folder, context.prepare_command)
    manifest.verify_dataset(folder, dataset, list(dataset.splits), hash_files=True)
    return f"sha256 of {', '.join(dataset.splits)} as in {manifest.MANIFEST_FILE}"


def wandb_reachable(context: CheckContext) -> str:
    """Check that there is a key and that the server answers. A run that can do without them passes."""
    mode = context.config.tracking.mode
    if mode == "none":
        return "not used (tracking=none)"
    if mode == "offline":
        return "not asked (tracking=offline): `runyard sync` sends it"
    problem = connection.connection_problem()
    if problem is None:
        return f"a key, and {connection.base_url()} answers {route_to(connection.base_url()).text}"
    if mode == "online":
        raise UserError(f"tracking.mode=online: {problem}", "or set tracking=offline")
    return f"offline for now (tracking=auto): {problem}"


def node_checks(node: NodeJob) -> list[tuple[str, Question]]:
    """Return the checks of the job on a node; the first of them runs the job."""

    def ask(question: Callable[[CheckContext, dict[str, Any]], str]) -> Question:
        return lambda context: question(context, node.report_or_unknown())

    return [
        ("environment", lambda context: node_imports(context, node.report())),
        ("GPUs", ask(gpus)),
        ("shared folders", ask(shared_folders)),
        ("internet", ask(internet)),
        ("local disk", ask(local_disk)),
        ("clocks", ask(clock_skew)),
    ]


def node_imports(context: CheckContext, report: dict[str, Any]) -> str:
    """Check that everything that training imports can be imported on the node."""
    if errors := report["errors"]:
        name, error = next(iter(errors.items()))
        others = f" (nor {', '.join(list(errors)[1:])})" if len(errors) > 1 else ""
        raise UserError(
            f"{name} cannot be imported on {report['host']} by {report['executable']}: {error}{others}",
            "run `make setup` where nodes can read it, or set cluster.python or RUNYARD_CONTAINER to an environment "
            "that has it",
        )
    versions = ", ".join(f"{name} {report['versions'][name]}" for name in REPORTED_PACKAGES)
    return f"on {report['host']}: Python {report['python']}, {versions}; {report['cpus']} CPUs for a task"


def gpus(context: CheckContext, report: dict[str, Any]) -> str:
    """Check that PyTorch sees a GPU on the node if GPUs are requested."""
    requested = context.config.cluster.gpus_per_node
    if report["gpus"]:
        return f"{', '.join(report['gpus'])}, CUDA {report['cuda']}"
    if requested and context.config.cluster.launcher == "slurm":
        raise UserError(
            f"cluster.gpus_per_node={requested}: torch (for CUDA {report['cuda']}) sees no GPU on {report['host']}",
            "install a torch for the driver there, or `module load` what it needs in cluster.env_setup",
        )
    return "none there, and none is asked for"


def shared_folders(context: CheckContext, report: dict[str, Any]) -> str:
    """Check that the node sees what is in ``runs_dir`` and ``data.root`` on this machine."""
    config, shared = context.config, report["shared_folder"]
    if shared is None:
        raise UserError(f"runs_dir={config.runs_dir}: cannot be written here", "set runs_dir to a folder you can write")
    if not (shared["seen"] and report["here"]["node_seen"]):
        problem = shared["error"] or "a file made here is not seen there"
        raise UserError(
            f"runs_dir={config.runs_dir}: not the same folder on {report['host']} ({problem})",
            "set runs_dir to one on a disk that login and compute nodes share",
        )
    if report["data"] is not None:
        raise UserError(
            f"data.root={config.data.root}: cannot be read on {report['host']} ({report['data']})",
            "set data.root to a folder on a disk that login and compute nodes share",
        )
    return f"runs_dir and data.root are the same on {report['host']}"


def internet(context: CheckContext, report: dict[str, Any]) -> str:
    """Check that the node can send to W&B's server, if the run needs it."""
    mode, problem = context.config.tracking.mode, report["wandb"]
    if problem is None:
        return f"not asked (tracking={mode})"
    if not problem:
        return f"W&B's server answers on {report['host']}"
    if mode == "online":
        raise UserError(
            f"tracking.mode=online: on {report['host']}: {problem}",
            "set tracking=auto or offline, and send the record afterwards with `runyard sync`",
        )
    return f"on {report['host']}: {problem}: the run logs offline, `runyard sync` sends it"


def local_disk(context: CheckContext, report: dict[str, Any]) -> str:
    """Check that the node's own disk can be written if the data is to be copied to it."""
    if context.config.cluster.stage_data is None:
        tmpdir = report["tmpdir"]
        if tmpdir is None or tmpdir["error"]:
            return "not used (cluster.stage_data=null), and no $SLURM_TMPDIR there"
        free = f"{tmpdir['free_gb']:,.0f} GB free in {tmpdir['path']}"
        return f"not used (cluster.stage_data=null), and there: {free}, which is $SLURM_TMPDIR"
    stage = report["stage"]
    if stage["error"]:
        raise UserError(
            f"cluster.stage_data={context.config.cluster.stage_data}: {stage['path']} on {report['host']} cannot be "
            f"written ({stage['error']})",
            "set it to a folder on the nodes' own disk, or null",
        )
    return f"{stage['free_gb']:,.0f} GB free in {stage['path']}"


def clock_skew(context: CheckContext, report: dict[str, Any]) -> str:
    """Check that the clocks of this machine, the node and the file server agree: leases and logs depend on it."""
    ahead = {f"{report['host']}'s clock": report["ahead_s"], "the file server's": report["here"]["server_ahead_s"]}
    if report["shared_folder"] and report["shared_folder"]["server_ahead_s"] is not None:
        file_server_ahead_s = report["ahead_s"] + report["shared_folder"]["server_ahead_s"]
        ahead["the file server's as the node sees it"] = file_server_ahead_s
    measured = {name: seconds for name, seconds in ahead.items() if seconds is not None}
    if not measured:
        raise QueryError("no clock could be compared")
    name, largest_s = max(measured.items(), key=lambda item: abs(item[1]))
    if abs(largest_s) > CLOCK_SKEW_S:
        direction = "ahead of" if largest_s > 0 else "behind"
        raise UserError(
            f"{name} is {abs(largest_s):.0f} s {direction} this machine's",
            "ask the cluster's support to fix its "
            "clock (NTP): a run that seems to be silent is taken over by another process",
        )
    return f"within {max(abs(seconds) for seconds in measured.values()):.1f} s of each other"
