"""All checks of a submission: what ``submit`` asks, and what takes longer: hashes, networks, quotas, a compute node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from runyard.cluster.launch.checks import preflight, storage
from runyard.cluster.launch.checks.check import Check, CheckContext, Question, run_check
from runyard.cluster.launch.checks.node_job import NodeJob
from runyard.cluster.monitor.run_status import CLOCK_SKEW_S
from runyard.data import manifest
from runyard.errors import UserError
from runyard.slurm_client import QueryError
from runyard.tracking.wandb import connection

REPORTED_PACKAGES = ("torch", "torchvision", "ffcv", "numpy", "wandb")  # whose versions are shown


def run_all_checks(
    context: CheckContext, on_start: Callable[[str], None], *, job: bool, wait_s: float
) -> Iterator[Check]:
    """Answer every question, one after the other.

    Args:
        begins: Told the name of each question before it is asked.
        job: Whether to run a job on a compute node (or a process here, without SLURM).
        wait_s: How long that job may wait for a node.
    """
    asked = [*preflight.questions(context), *slow_checks()]
    if job:
        asked += node_checks(NodeJob(context, _server(context), wait_s))
    for name, question in asked:
        on_start(name)
        yield run_check(name, question, context)


def slow_checks() -> list[tuple[str, Question]]:
    """What is asked on this machine, and takes longer."""
    return [
        ("data hashes", data_is_unchanged),
        ("W&B", wandb_reachable),
        ("files left", storage.free_inodes),
        ("quota", storage.quota),
        ("purge", storage.purge_risk),
    ]


def data_is_unchanged(context: CheckContext) -> str:
    """Every file of the data has the sha256 of its manifest."""
    folder = manifest.dataset_dir(context.config.data)
    found = manifest.load_manifest(folder, context.prepare_command)
    manifest.verify_dataset(folder, found, list(found.splits), hash_files=True)
    return f"sha256 of {', '.join(found.splits)} as in {manifest.MANIFEST_FILE}"


def wandb_reachable(context: CheckContext) -> str:
    """There is a key, and the server answers; where the run does without it, that is said."""
    mode = context.config.tracking.mode
    if mode == "none":
        return "not used (tracking=none)"
    if mode == "offline":
        return "not asked (tracking=offline): `runyard sync` sends it"
    why = connection.connection_problem()
    if why is None:
        return f"a key, and {connection.base_url()} answers"
    if mode == "online":
        raise UserError(f"tracking.mode=online: {why}; or set tracking=offline")
    return f"offline for now (tracking=auto): {why}"


def node_checks(node: NodeJob) -> list[tuple[str, Question]]:
    """What the job on a node tells, question by question; the first of them runs it."""

    def asked(question: Callable[[CheckContext, dict[str, Any]], str]) -> Question:
        return lambda context: question(context, node.report_or_unknown())

    return [
        ("environment", lambda context: node_imports(context, node.report())),
        ("GPUs", asked(gpus)),
        ("shared folders", asked(shared_folders)),
        ("internet", asked(internet)),
        ("local disk", asked(local_disk)),
        ("clocks", asked(clock_skew)),
    ]


def node_imports(context: CheckContext, facts: dict[str, Any]) -> str:
    """All that training imports can be imported there."""
    if errors := facts["errors"]:
        name, said = next(iter(errors.items()))
        others = f" (nor {', '.join(list(errors)[1:])})" if len(errors) > 1 else ""
        raise UserError(
            f"{name} cannot be imported on {facts['host']} by {facts['executable']}: {said}{others}; run `make setup` "
            "where nodes can read it, or set cluster.python or RUNYARD_CONTAINER to an environment that has it"
        )
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in REPORTED_PACKAGES)
    return f"on {facts['host']}: Python {facts['python']}, {versions}; {facts['cpus']} CPUs for a task"


def gpus(context: CheckContext, facts: dict[str, Any]) -> str:
    """PyTorch sees one where GPUs are asked for."""
    asked = context.config.cluster.gpus_per_node
    if facts["gpus"]:
        return f"{', '.join(facts['gpus'])}, CUDA {facts['cuda']}"
    if asked and context.config.cluster.launcher == "slurm":
        raise UserError(
            f"cluster.gpus_per_node={asked}: torch (for CUDA {facts['cuda']}) sees no GPU on {facts['host']}; "
            "install a torch for the driver there, or `module load` what it needs in cluster.env_setup"
        )
    return "none there, and none is asked for"


def shared_folders(context: CheckContext, facts: dict[str, Any]) -> str:
    """What lies in ``runs_dir`` and ``data.root`` here is seen there."""
    config, meeting = context.config, facts["meeting"]
    if meeting is None:
        raise UserError(f"runs_dir={config.runs_dir}: cannot be written here; set runs_dir to a folder you can write")
    if not (meeting["seen"] and facts["here"]["node_seen"]):
        why = meeting["error"] or "a file made here is not seen there"
        raise UserError(
            f"runs_dir={config.runs_dir}: not the same folder on {facts['host']} ({why}); "
            "set runs_dir to one on a disk that login and compute nodes share"
        )
    if facts["data"] is not None:
        raise UserError(
            f"data.root={config.data.root}: cannot be read on {facts['host']} ({facts['data']}); set data.root to a "
            "folder on a disk that login and compute nodes share"
        )
    return f"runs_dir and data.root are the same on {facts['host']}"


def internet(context: CheckContext, facts: dict[str, Any]) -> str:
    """W&B's server can be reached from there, where the run needs that."""
    mode, reached = context.config.tracking.mode, facts["reached"]
    if reached is None:
        return f"not asked (tracking={mode})"
    if reached:
        return f"W&B's server answers on {facts['host']}"
    if mode == "online":
        raise UserError(
            f"tracking.mode=online: W&B's server does not answer on {facts['host']}; set tracking=auto or offline, and "
            "send the record afterwards with `runyard sync`"
        )
    return f"W&B's server does not answer on {facts['host']}: the run logs offline, `runyard sync` sends it"


def local_disk(context: CheckContext, facts: dict[str, Any]) -> str:
    """Nodes have a disk of their own where the data is to be copied to."""
    if context.config.cluster.stage_data is None:
        tmpdir = facts["tmpdir"]
        if tmpdir is None or tmpdir["error"]:
            return "not used (cluster.stage_data=null), and no $SLURM_TMPDIR there"
        free = f"{tmpdir['free_gb']:,.0f} GB free in {tmpdir['path']}"
        return f"not used (cluster.stage_data=null), and there: {free}, which is $SLURM_TMPDIR"
    stage = facts["stage"]
    if stage["error"]:
        raise UserError(
            f"cluster.stage_data={context.config.cluster.stage_data}: {stage['path']} on {facts['host']} cannot be "
            f"written ({stage['error']}); set it to a folder on the nodes' own disk, or null"
        )
    return f"{stage['free_gb']:,.0f} GB free in {stage['path']}"


def clock_skew(context: CheckContext, facts: dict[str, Any]) -> str:
    """This machine, the node and the file server agree about the time: leases and logs compare theirs."""
    ahead = {f"{facts['host']}'s clock": facts["ahead_s"], "the file server's": facts["here"]["server_ahead_s"]}
    if facts["meeting"] and facts["meeting"]["server_ahead_s"] is not None:
        there = facts["ahead_s"] + facts["meeting"]["server_ahead_s"]
        ahead["the file server's as the node sees it"] = there
    known = {name: seconds for name, seconds in ahead.items() if seconds is not None}
    if not known:
        raise QueryError("no clock could be compared")
    name, most = max(known.items(), key=lambda item: abs(item[1]))
    if abs(most) > CLOCK_SKEW_S:
        way = "ahead of" if most > 0 else "behind"
        raise UserError(
            f"{name} is {abs(most):.0f} s {way} this machine's; ask the cluster's support to mend its time (NTP): "
            "runs that seem to be silent are taken over"
        )
    return f"within {max(abs(seconds) for seconds in known.values()):.1f} s of each other"


def _server(context: CheckContext) -> tuple[str, int] | None:
    if context.config.tracking.mode not in ("auto", "online"):
        return None
    try:
        return connection.first_stop(connection.base_url())
    except (ValueError, KeyError):  # it is no address
        return None
