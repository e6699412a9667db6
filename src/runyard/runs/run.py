"""A run is a directory: the frozen configuration, the run's identity, a snapshot of its code, and its results.

The login node creates it; a job receives only its path. This module imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from runyard.config import schema
from runyard.config.schema import Config
from runyard.errors import UserError
from runyard.files import read_regular, sha256, write_atomic
from runyard.ownership import per_user_name, private_folder, require_owner, set_umask
from runyard.runs import journal
from runyard.runs.code.snapshot import CODE_STORE, take_snapshot
from runyard.runs.events import parse_event
from runyard.runs.lease import Lease, lease_holder, successor_text
from runyard.runs.record import (
    RUN_FORMAT,
    RUN_HINT,
    JobRecord,
    RunRecord,
    WandbAssignment,
    editing_record,
    read_record,
    read_settings,
)
from runyard.runs.state import JournalState, RunState
from runyard.runs.store import find_run_dir, reference_to

UNWRITABLE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class Run:
    """One run's directory. ``Run.create`` creates one; ``Run.open`` and ``Run.find`` open an existing one.

    Attributes:
        path: The directory, an absolute path.
        config: The frozen configuration.
        record: ``run.json`` as it was last read or written: id, name, creation time, hashes of code and configuration,
            the overrides it was created with, its jobs, and a ``submission`` that has no job yet.
    """

    def __init__(self, path: Path, config: Config, record: RunRecord) -> None:
        self.path, self.config, self.record = path, config, record

    @property
    def id(self) -> str:
        """The run's id, unique and sortable by time."""
        return str(self.record["id"])

    @property
    def wandb_id(self) -> str:
        """The id of its run at W&B: its own id, or the one that W&B's sweep agent has assigned to it."""
        return str((self.record.get("wandb") or self.record)["id"])

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def journal_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def code_path(self) -> Path:
        """The snapshot of the sources that this run was created from; it comes first on a job's PYTHONPATH."""
        return Path(os.path.realpath(self.path / "code"))

    @property
    def cli_reference(self) -> str:
        """What names this run on a command line in this directory."""
        return reference_to(self.path)

    @property
    def is_finished(self) -> bool:
        """Whether its journal says that it finished, for as many epochs as the configuration has."""
        rows, _ = journal.read_journal(self.journal_path)
        status = JournalState.of(map(parse_event, rows))
        last_epochs = [row["epoch"] for row in journal.epochs(rows)][-1:]
        return status.state is RunState.FINISHED and status.stop is not None and last_epochs == [self.config.epochs]

    @property
    def config_edited(self) -> bool:
        """Whether config.yaml was changed by hand after the run was created."""
        recorded_sha256 = self.record.get("config_sha256")
        return recorded_sha256 is not None and recorded_sha256 != sha256(self.path / "config.yaml")

    @classmethod
    def create(
        cls,
        config: Config,
        overrides: list[str],
        sweep: str | None = None,
        trial: int | None = None,
        wandb: WandbAssignment | None = None,
    ) -> Run:
        """Create a run in a new directory under ``config.runs_dir``, which is complete before it gets its name.

        Args:
            overrides: The settings given on the command line.
            sweep: Id of the sweep that the run belongs to.
            trial: Number of its trial in a hyperparameter search.
            wandb: Which run of which sweep at W&B it is.

        Raises:
            UserError: the folder cannot be written.
        """
        runs_dir, group_reads = Path(config.runs_dir).absolute(), config.runs_group_readable
        set_umask(group_reads=group_reads)
        run_id = new_id(config.name)
        tmp_dir = runs_dir / f".making-{run_id}"
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
            private_folder(tmp_dir, group_reads=group_reads)
            try:
                code_hash = take_snapshot(runs_dir / CODE_STORE, group_reads=group_reads)
                write_atomic(tmp_dir / "config.yaml", yaml.safe_dump(schema.config_to_dict(config), sort_keys=False))
                record: RunRecord = {
                    "format": RUN_FORMAT,
                    "id": run_id,
                    "name": config.name,
                    "created": time.time(),
                    "code_sha256": code_hash,
                    "config_sha256": sha256(tmp_dir / "config.yaml"),
                    "overrides": overrides,
                    "sweep": sweep,
                    "jobs": [],
                }
                if trial is not None:
                    record["trial"] = trial
                if wandb is not None:
                    record["wandb"] = wandb
                (tmp_dir / "checkpoints").mkdir()
                (tmp_dir / "slurm").mkdir()
                (tmp_dir / "code").symlink_to(Path("..") / CODE_STORE / code_hash[:16])
                write_atomic(tmp_dir / "run.json", json.dumps(record, indent=1))
                tmp_dir.rename(runs_dir / run_id)
            except BaseException:
                shutil.rmtree(tmp_dir, ignore_errors=True)
                raise
        except OSError as error:
            raise UserError(
                f"runs_dir={config.runs_dir}: cannot create a run there ({error.strerror})",
                "set runs_dir to a folder you can write",
            ) from error
        return cls(runs_dir / run_id, config, record)

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Open the run in this directory.

        Raises:
            UserError: it is not a run directory, or its files are damaged.
        """
        path = Path(path).absolute()
        record = read_record(path)
        return cls(path, _read_config(path), record)

    @classmethod
    def find(cls, reference: str, runs_dir: Path | str = "runs") -> Run:
        """Open the run that ``reference`` names: a path, an id, the beginning of one, or ``@last``.

        Raises:
            UserError: no run or several runs match, or the run is damaged.
        """
        return cls.open(find_run_dir(reference, runs_dir))

    def reload(self) -> None:
        """Reload configuration and record from disk.

        Raises:
            UserError: its files have been damaged.
        """
        reloaded = Run.open(self.path)
        self.config, self.record = reloaded.config, reloaded.record

    @contextlib.contextmanager
    def editing_record(self) -> Iterator[RunRecord]:
        """Yield ``run.json`` as it is on disk; changes are written at the end of the block (``editing_record``)."""
        with self.reporting_write_errors(), editing_record(self.path) as record:
            yield record
        self.record = record

    def add_job(self, job: JobRecord) -> None:
        """Add a job to ``run.json``. Only submitting commands write that file; jobs write the journal."""
        with self.editing_record() as record:
            record["jobs"].append(job)

    def change_settings(self, config: Config, overrides: list[str], changes: list[str]) -> None:
        """Replace the configuration, and record the ``changes`` in ``run.json``.

        The caller checks that these settings may change.

        Args:
            overrides: All overrides that give ``config``.
            changes: The overrides that were given to change it.
        """
        with self.editing_record() as record:
            write_atomic(self.path / "config.yaml", yaml.safe_dump(schema.config_to_dict(config), sort_keys=False))
            record.setdefault("amended", []).append({"t": time.time(), "overrides": changes})
            record["overrides"] = overrides
            record["config_sha256"] = sha256(self.path / "config.yaml")
        self.config = config

    def allow_restart_from_scratch(self) -> None:
        """Record that the checkpoints saved so far are given up: the run may restart at step 0."""
        with self.editing_record() as record:
            record["from_scratch"] = time.time()

    def mark_pruned(self) -> None:
        """Record that its search stopped it because it did worse than the others: nothing else interrupted it."""
        with self.editing_record() as record:
            record["pruned"] = True

    def require_own(self, *, instead: str, trusted: bool = False) -> None:
        """Refuse to act on another user's run, unless the user has confirmed that it is ``trusted``.

        Raises:
            UserError: the run is another user's. The message says whose, and what to do ``instead``.
        """
        if not trusted:
            require_owner(self.path, f"run {self.id}", instead)

    def set_umask(self) -> None:
        """Make all that this process and its children write private, or group-readable if the run's setting says so."""
        set_umask(group_reads=self.config.runs_group_readable)

    @contextlib.contextmanager
    def reporting_write_errors(self) -> Iterator[None]:
        """Raise UserError instead of OSError for a full or read-only disk within the block."""
        try:
            yield
        except OSError as error:
            if error.errno not in UNWRITABLE_ERRNOS:
                raise
            raise UserError(
                f"{error.filename or self.path}: {error.strerror}",
                f"fix that, then continue with: runyard resume {self.cli_reference}",
            ) from error

    def acquire_lease(self) -> Lease:
        """Acquire the right to write this run; it is held until released or until this process ends.

        Raises:
            UserError: another process holds it, or the directory cannot be written.
        """
        with self.reporting_write_errors():
            lease = Lease(self.path, f"run {self.id}")
            if lease.fencing:
                self._fence_previous_holder()
            return lease

    def _fence_previous_holder(self) -> None:
        """Move away what the previous holder may have open or prepared, so that a last write of it has no effect."""
        if self.journal_path.exists():
            write_atomic(self.journal_path, read_regular(self.journal_path))
        for tmp_dir in self.checkpoints.glob(".making-*"):
            lost = tmp_dir.with_name(f".making-lost-{secrets.token_hex(4)}")
            with contextlib.suppress(FileNotFoundError):  # completed meanwhile: a checkpoint like any other
                tmp_dir.rename(lost)
            shutil.rmtree(lost, ignore_errors=True)  # it may still be writing there; the next save removes the rest

    def lease_holder(self) -> str | None:
        """Describe the process that writes this run now; None if none is known. The lease is not changed."""
        return lease_holder(self.path)

    def successor(self) -> str | None:
        """Describe what writes this run instead of the calling SLURM job: a later start of it, or another process."""
        return successor_text(self.path)


def sweeps_dir(runs_dir: Path | str) -> Path:
    """Return where this user's sweeps keep files that all of their runs share, such as what the jobs unpickle."""
    return Path(runs_dir).absolute() / per_user_name(".sweeps")


def new_id(name: str) -> str:
    """Return a new id for a run or a sweep, unique and sortable by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{secrets.token_hex(2)}"


def _read_config(run: Path) -> Config:
    values, _ = read_settings(run)
    try:
        return schema.config_from_dict(values)
    except UserError as error:
        fixes = "; ".join(filter(None, (error.fix, RUN_HINT)))
        raise UserError(f"{run / 'config.yaml'}: {error.problem}", fixes) from None
