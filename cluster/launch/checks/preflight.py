"""The checks that run before a run is created and a job is queued. ``submit`` stops at the first failure."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from runyard.cluster.launch.batch_script import SbatchJob
from runyard.cluster.launch.checks.check import CheckContext, Question
from runyard.cluster.launch.checks.network import network_trains
from runyard.cluster.launch.checks.slurm_checks import SLURM_CHECKS
from runyard.cluster.monitor.run_status import run_status
from runyard.config import compose
from runyard.config.fields import format_literal
from runyard.config.schema import Config, check_world_size
from runyard.data import manifest
from runyard.data.verified import check_content, files_read
from runyard.errors import UserError
from runyard.runs import saved_checkpoints
from runyard.runs.record import blank_record
from runyard.runs.run import Run, sweeps_dir
from runyard.runs.summary import RunSummary
from runyard.slurm_client import RETRY_TIMEOUT_S, QueryError
from runyard.tracking.notify import webhook_url

MIN_FREE_MB = 500
MAX_HASHED_BYTES = 1 << 30  # on the login node; the job hashes larger files
OWN_RUN_HINT = "begin one of your own with `runyard submit`"


def ranks(context: CheckContext) -> str:
    """Check that the global batch divides among the ranks."""
    world = context.tasks_per_node * context.config.cluster.nodes
    check_world_size(context.config, world)
    return f"{world}, each with {context.config.batch_size // world} images of the batch"


def data_prepared(context: CheckContext) -> str:
    """Check that the data is prepared, unchanged, and large enough for one batch."""
    if not context.needs_data:
        raise QueryError("the data may be prepared while the job waits")
    config, folder = context.config, manifest.dataset_dir(context.config.data)
    dataset = manifest.load_manifest(folder, context.prepare_command)
    manifest.verify_dataset(folder, dataset, list(dataset.splits), hash_files=False)
    check_content(folder, dataset, files_read(config, dataset), at_most_bytes=MAX_HASHED_BYTES)
    samples = dataset.splits["train"].samples
    if config.batch_size > samples:
        raise UserError(f"batch_size={config.batch_size}: {folder} holds {samples} training images", "set at most that")
    return f"{samples:,} training images in {folder}"


def precision(context: CheckContext) -> str:
    """Check that fp16 has a GPU to run on."""
    cluster = context.config.cluster
    gpus = cluster.gpus_per_node if cluster.launcher == "slurm" else compose.gpu_count()
    if context.config.precision == "fp16" and not gpus:
        raise UserError("precision=fp16 needs a GPU, and this machine shows none", "set precision=bf16 or fp32")
    return f"{context.config.precision}, GPUs on a node: {gpus or 0}"


def disk_space(context: CheckContext) -> str:
    """Check that ``runs_dir`` can hold a run, and that its disk has space for checkpoints."""
    _require_usable(context.config.runs_dir)
    folder = nearest_existing_dir(Path(context.config.runs_dir))
    free_mb = shutil.disk_usage(folder).free / 1e6
    if free_mb < MIN_FREE_MB:
        raise UserError(
            f"runs_dir={context.config.runs_dir}: {free_mb:.0f} MB free, expected {MIN_FREE_MB} MB at least",
            "free some, or set runs_dir elsewhere",
        )
    return f"{free_mb / 1000:,.0f} GB free under {folder}"


def script_parses(context: CheckContext) -> str:
    """Check that bash can parse the batch script: an unclosed line of env_setup would swallow the lines after it."""
    if context.script is None or shutil.which("bash") is None:
        raise QueryError("there is no batch script, or no bash to read it")
    parsed = subprocess.run(["bash", "-n"], input=context.script(), capture_output=True, text=True)
    if errors := parsed.stderr.strip():
        lines = format_literal(context.config.cluster.env_setup)
        raise UserError(
            f"cluster.env_setup={lines}: bash cannot read the script ({errors.splitlines()[0]})", "fix these lines"
        )
    return "can be read"


def python_warning(config: Config) -> str | None:
    """Return a warning if ``cluster.python`` is not on this machine; nodes may have it, or ``env_setup`` provide it."""
    program = config.cluster.python
    if config.cluster.launcher != "slurm" or program is None or shutil.which(program) is not None:
        return None
    return (
        f"cluster.python={format_literal(program)}: no such program on this machine; the job dies at once unless "
        "its nodes have it, which `runyard doctor` asks one of them"
    )


def notification(context: CheckContext) -> str:
    """Check that the address of the webhook is where the configuration says, and that nobody else can read it."""
    notify = context.config.notify
    url = webhook_url(notify, os.environ, Path(context.config.runs_dir))
    ways = [f"the webhook at {urlsplit(url).hostname}"] if url is not None else []
    ways += ["a command"] if notify.command is not None else []
    return f"{' and '.join(ways)} when the run ends" if ways else "nobody (notify.url_file, url_env, command)"


TRAINING_CHECKS: list[tuple[str, Question]] = [
    ("ranks", ranks),
    ("data", data_prepared),
    ("precision", precision),
    ("network", network_trains),
    ("room", disk_space),
    ("notify", notification),
]


def questions(context: CheckContext) -> list[tuple[str, Question]]:
    """Return the quick checks, in the order in which they run."""
    on_slurm = context.config.cluster.launcher == "slurm"
    return [*TRAINING_CHECKS, *([("script", script_parses), *SLURM_CHECKS] if on_slurm else [])]


def preflight(context: CheckContext, *, include_slurm: bool = True) -> None:
    """Run the quick checks.

    Without ``include_slurm`` SLURM is not asked, as for a dry run, and for further points of a sweep.

    Raises:
        UserError: a check failed. One without an answer does not stop a submission.
    """
    for _, question in questions(context) if include_slurm else [*TRAINING_CHECKS, ("script", script_parses)]:
        try:
            question(context)
        except QueryError:
            continue


def planned_job(configs: list[Config], after: str | None = None) -> SbatchJob:
    """Return the job of runs that do not exist yet, as it will be, except that the names are RUN or SWEEP."""
    runs_dir, several = Path(configs[0].runs_dir).absolute(), len(configs) > 1
    names = [f"RUN{number}" for number in range(len(configs))] if several else ["RUN"]
    runs = [Run(runs_dir / name, c, blank_record(name)) for name, c in zip(names, configs, strict=True)]
    folder = sweeps_dir(runs_dir) / "SWEEP" if several else runs[0].path / "slurm"
    return SbatchJob("SWEEP" if several else "RUN", folder, runs, after, token="TOKEN")


def require_resumable(run: Run) -> None:
    """Refuse to start another job for a run that is active or finished.

    The caller holds the run's lock (``runyard.cluster.slurm.submission``).

    Raises:
        UserError: the message says which of these, and what to do instead; or SLURM does not answer.
    """
    if run.is_finished:
        raise UserError(
            f"run {run.id} is finished: there is nothing to resume",
            f"start another with `runyard submit`, or write its report again: runyard report {run.cli_reference}",
        )
    if (writer := run.lease_holder()) is not None:
        raise UserError(
            f"run {run.id} is being written by {writer}",
            f"wait for it, or stop it first: runyard cancel {run.cli_reference}",
        )
    on_slurm = run.config.cluster.launcher == "slurm"
    status = run_status(RunSummary(run.path), wait_s=RETRY_TIMEOUT_S if on_slurm else 0, holds_locks=True)
    if status.error and on_slurm:
        raise UserError(f"run {run.id}: {status.message}", "nothing was submitted, since it may have a job already")
    if status.active:
        job = f" (job {status.job.id})" if status.job is not None else ""
        raise UserError(
            f"run {run.id} is {status.state} already{job}",
            f"see: runyard status {run.cli_reference}, or stop it first: runyard cancel {run.cli_reference}",
        )


def skipped_checkpoints_warning(run: Run, *, from_scratch: bool) -> str | None:
    """Return a warning of the checkpoints that a job would skip, None if there are none.

    Args:
        from_scratch: Whether the job may restart from step 0 if no checkpoint is left.

    Raises:
        UserError: no checkpoint is left and the job may not restart, or ``from_scratch`` is given and one is left.
    """
    if from_scratch:
        if (newest := saved_checkpoints.newest_checkpoint(run.checkpoints)) is not None:
            raise UserError(
                f"--from-scratch: run {run.id} has {newest.path} to resume from: leave the option out",
                "to learn from the beginning, start another run with `runyard submit`, or move that away first",
            )
        run.allow_restart_from_scratch()
    return saved_checkpoints.select_checkpoint(run).warning


def require_own_run(run: Run, *, trusted: bool = False) -> None:
    """Refuse a run that another user owns, unless it is ``trusted``, and one whose directory cannot be written.

    Raises:
        UserError: the message names the owner, or the command that fixes the permissions.
    """
    run.require_own(trusted=trusted, instead=f"{OWN_RUN_HINT}; or --trust, if you would run anything that they wrote")
    if os.statvfs(run.path).f_flag & os.ST_RDONLY:
        raise UserError(f"run {run.id}: its disk is mounted read-only", "copy its directory to a disk you can write")
    if not os.access(run.path, os.W_OK | os.X_OK):
        raise UserError(
            f"run {run.id}: its directory cannot be written ({stat.filemode(run.path.stat().st_mode)})",
            f"fix it with: chmod u+rwx {shlex.quote(str(run.path))}",
        )


def nearest_existing_dir(path: Path) -> Path:
    """Return ``path`` if it exists, else the nearest folder above it that does."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if os.path.isdir(folder))


def _require_usable(runs_dir: str) -> None:
    """Refuse a folder that is there and cannot be written, or that can never be made.

    Raises:
        UserError: the message says why.
    """
    path = Path(runs_dir).absolute()
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            reason: str | None = "not a directory"
        else:
            reason = None if os.access(path, os.W_OK | os.X_OK) else "it cannot be written"
    except FileNotFoundError:
        reason = "a link that leads nowhere" if path.is_symlink() else None
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise UserError(
            f"runs_dir={runs_dir}: cannot create a run there ({reason})", "set runs_dir to a folder you can write"
        )
