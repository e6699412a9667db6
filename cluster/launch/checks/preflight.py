"""The checks made before a run is created and a queue slot is spent. ``submit`` stops at the first that fails."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

from runyard.cluster.launch.batch_script import SbatchJob
from runyard.cluster.launch.checks.check import CheckContext, Question
from runyard.cluster.launch.checks.slurm_checks import SLURM_CHECKS
from runyard.cluster.monitor.run_status import run_status
from runyard.config import compose
from runyard.config.fields import format_literal
from runyard.config.schema import Config, check_world_size
from runyard.data import manifest
from runyard.data.verified import check_content, files_read
from runyard.errors import UserError
from runyard.runs import saved_checkpoints
from runyard.runs.run import Run, sweeps_dir
from runyard.runs.summary import read_run_summary
from runyard.slurm_client import RETRY_TIMEOUT_S, QueryError

MIN_FREE_MB = 500
MAX_HASHED_BYTES = 1 << 30  # on the login node; the job hashes what is more
OWN_RUN_HINT = "begin one of your own with `runyard submit`"


def ranks(context: CheckContext) -> str:
    """The global batch divides among the ranks."""
    world = context.tasks_per_node * context.config.cluster.nodes
    check_world_size(context.config, world)
    return f"{world}, each with {context.config.batch_size // world} images of the batch"


def data_prepared(context: CheckContext) -> str:
    """Prepared, what its manifest says, and large enough for one batch."""
    if not context.needs_data:
        raise QueryError("it may come to be while the job waits")
    config, folder = context.config, manifest.dataset_dir(context.config.data)
    found = manifest.load_manifest(folder, context.prepare_command)
    manifest.verify_dataset(folder, found, list(found.splits), hash_files=False)
    check_content(folder, found, files_read(config, found), at_most_bytes=MAX_HASHED_BYTES)
    samples = found.splits["train"].samples
    if config.batch_size > samples:
        raise UserError(f"batch_size={config.batch_size}: {folder} holds {samples} training images; set at most that")
    return f"{samples:,} training images in {folder}"


def precision(context: CheckContext) -> str:
    """fp16 has a GPU to run on."""
    cluster = context.config.cluster
    gpus = cluster.gpus_per_node if cluster.launcher == "slurm" else compose.gpu_count()
    if context.config.precision == "fp16" and not gpus:
        raise UserError("precision=fp16 needs a GPU, and this machine shows none: set precision=bf16 or fp32")
    return f"{context.config.precision}, GPUs on a node: {gpus or 0}"


def disk_space(context: CheckContext) -> str:
    """The disk of ``runs_dir`` has room for checkpoints."""
    there = nearest_existing_dir(Path(context.config.runs_dir))
    free_mb = shutil.disk_usage(there).free / 1e6
    if free_mb < MIN_FREE_MB:
        raise UserError(
            f"runs_dir={context.config.runs_dir}: {free_mb:.0f} MB free, expected {MIN_FREE_MB} MB at least; "
            "free some, or set runs_dir elsewhere"
        )
    return f"{free_mb / 1000:,.0f} GB free under {there}"


def script_parses(context: CheckContext) -> str:
    """bash can read the batch script: what a line of env_setup leaves open would swallow the lines after it."""
    if context.script is None:
        raise QueryError("there is no batch script")
    read = subprocess.run(["bash", "-n"], input=context.script(), capture_output=True, text=True)
    if said := read.stderr.strip():
        lines = format_literal(context.config.cluster.env_setup)
        raise UserError(f"cluster.env_setup={lines}: bash cannot read the script ({said.splitlines()[0]}); mend these")
    return "can be read"


def python_warning(config: Config) -> str | None:
    """What to warn of: that ``cluster.python`` cannot be found here. Nodes may have it, or ``env_setup`` bring it."""
    program = config.cluster.python
    if config.cluster.launcher != "slurm" or program is None or shutil.which(program) is not None:
        return None
    return (
        f"cluster.python={format_literal(program)}: no such program on this machine; the job dies at once unless "
        "its nodes have it, which `runyard doctor` asks one of them"
    )


TRAINING_CHECKS: list[tuple[str, Question]] = [
    ("ranks", ranks),
    ("data", data_prepared),
    ("precision", precision),
    ("room", disk_space),
]


def questions(context: CheckContext) -> list[tuple[str, Question]]:
    """The cheap ones, in the order in which they are asked."""
    on_slurm = context.config.cluster.launcher == "slurm"
    return [*TRAINING_CHECKS, *([("script", script_parses), *SLURM_CHECKS] if on_slurm else [])]


def preflight(context: CheckContext, *, include_slurm: bool = True) -> None:
    """Ask what is cheap to ask.

    Without ``include_slurm`` ask only about the training itself, as for further points of a sweep.

    Raises:
        UserError: the first no. What cannot be told does not hold up a submission.
    """
    for _, question in questions(context) if include_slurm else TRAINING_CHECKS:
        try:
            question(context)
        except QueryError:
            continue


def planned_job(configs: list[Config], after: str | None = None) -> SbatchJob:
    """The batch of runs that have no directory yet, but for its names RUN or SWEEP as it will be."""
    runs_dir, several = Path(configs[0].runs_dir).absolute(), len(configs) > 1
    names = [f"RUN{number}" for number in range(len(configs))] if several else ["RUN"]
    runs = [Run(runs_dir / name, c, {"id": name, "jobs": []}) for name, c in zip(names, configs, strict=True)]
    folder = sweeps_dir(runs_dir) / "SWEEP" if several else runs[0].path / "slurm"
    return SbatchJob("SWEEP" if several else "RUN", folder, runs, after, token="TOKEN")


def require_resumable(run: Run) -> None:
    """Refuse to start another job for ``run`` where one is on its way, or it has reached its end.

    Who asks holds the run's lock (``runyard.cluster.slurm.submission``).

    Raises:
        UserError: saying which of these, and what to do instead; or SLURM does not say.
    """
    if run.is_finished:
        raise UserError(
            f"run {run.id} is finished: there is nothing to go on with; start another with `runyard submit`, "
            f"or write its report again: runyard report {run.cli_reference}"
        )
    if (writer := run.lease_holder()) is not None:
        raise UserError(
            f"run {run.id} is being written by {writer}: wait for it, or stop it first: "
            f"runyard cancel {run.cli_reference}"
        )
    on_slurm = run.config.cluster.launcher == "slurm"
    now = run_status(read_run_summary(run.path), wait_s=RETRY_TIMEOUT_S if on_slurm else 0, holds_locks=True)
    if now.error and on_slurm:
        raise UserError(f"run {run.id}: {now.message}; nothing was submitted, since it may have a job already")
    if now.active:
        job = f" (job {now.job.id})" if now.job is not None else ""
        raise UserError(
            f"run {run.id} is {now.state} already{job}; see: runyard status {run.cli_reference}, "
            f"or stop it first: runyard cancel {run.cli_reference}"
        )


def skipped_checkpoints_warning(run: Run, *, from_scratch: bool) -> str | None:
    """What is to be said of the checkpoints that a job would pass over; None: nothing.

    Args:
        from_scratch: Whether it may begin at step 0 again, where no checkpoint is left.

    Raises:
        UserError: none is left, and it may not; or one is, and it is not to be gone on from.
    """
    if from_scratch:
        if (found := saved_checkpoints.newest_checkpoint(run.checkpoints)) is not None:
            raise UserError(
                f"--from-scratch: run {run.id} has {found.path} to go on from: leave the option out; "
                "to learn from the beginning, start another run with `runyard submit`, or move that away first"
            )
        run.allow_restart_from_scratch()
    return saved_checkpoints.select_checkpoint(run).warning


def require_own_run(run: Run, *, trusted: bool = False) -> None:
    """Refuse a run that another user owns, unless it is ``trusted``, or whose directory cannot be written.

    Raises:
        UserError: saying whose it is.
    """
    run.require_own(trusted=trusted, instead=f"{OWN_RUN_HINT}; or --trust, if you would run anything that they wrote")
    if not os.access(run.path, os.W_OK | os.X_OK):
        raise UserError(
            f"run {run.id}: its directory cannot be written ({stat.filemode(run.path.stat().st_mode)}); "
            f"mend it with: chmod u+rwx {run.path}"
        )


def nearest_existing_dir(path: Path) -> Path:
    """``path``, or the folder that exists and will hold it."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())
