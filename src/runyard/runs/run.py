"""A run is a directory: the frozen configuration, the run's identity, a snapshot of its code, and its results.

The login node creates it; a job receives only its path. This module imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from runyard.config import schema
from runyard.config.schema import Config
from runyard.errors import UserError
from runyard.file_lock import exclusive_lock
from runyard.files import file_fix, read_within, sha256, write_atomic
from runyard.ownership import per_user_name, private_folder, require_owner, set_umask
from runyard.runs import journal
from runyard.runs.lease import Lease, lease_holder, successor_text
from runyard.runs.snapshot import CODE_STORE, take_snapshot

RUN_FORMAT = "runyard-run-1"
RECORD_LOCK = ".record-lock"
RUN_HINT = "restore it, or start another run with `runyard submit`"
JOB_TYPES: dict[str, type | tuple[type, ...]] = {"launcher": str, "logs": str, "submitted": (int, float), "nodes": int}
UNWRITABLE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class Run:
    """One run's directory. ``Run.create`` creates one; ``Run.open`` and ``Run.find`` open an existing one.

    Attributes:
        path: The directory, an absolute path.
        config: The frozen configuration.
        record: ``run.json`` as it was last read or written: id, name, creation time, hashes of code and configuration,
            the overrides it was created with, its jobs, and a ``submission`` that has no job yet.
    """

    def __init__(self, path: Path, config: Config, record: dict[str, Any]) -> None:
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
        return (self.path / "code").resolve()

    @property
    def cli_reference(self) -> str:
        """What names this run on a command line in this directory: its id if it is in ./runs, else its path."""
        return self.id if self.path == Path("runs", self.id).absolute() else str(self.path)

    @property
    def is_finished(self) -> bool:
        """Whether its journal says that it finished, for as many epochs as the configuration has."""
        rows, _ = journal.read_journal(self.journal_path)
        finished = any(row["event"] == "stop" and row.get("reason") == "finished" for row in rows)
        return finished and [row["epoch"] for row in journal.epochs(rows)][-1:] == [self.config.epochs]

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
        wandb: dict[str, Any] | None = None,
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
                record = {
                    "format": RUN_FORMAT,
                    "id": run_id,
                    "name": config.name,
                    "created": time.time(),
                    "code_sha256": code_hash,
                    "config_sha256": sha256(tmp_dir / "config.yaml"),
                    "overrides": overrides,
                    "sweep": sweep,
                    **({} if trial is None else {"trial": trial}),
                    **({} if wandb is None else {"wandb": wandb}),
                    "jobs": [],
                }
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
                f"runs_dir={config.runs_dir}: cannot create a run there ({error.strerror}); "
                "set runs_dir to a folder you can write"
            ) from error
        return cls(runs_dir / run_id, config, record)

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Open the run in this directory.

        Raises:
            UserError: it is not a run directory, or its files are damaged.
        """
        path = Path(path).absolute()
        record = _read_record(path)
        values = _read_mapping(path / "config.yaml", yaml.safe_load)
        try:
            config = schema.config_from_dict(values)
        except UserError as error:
            raise UserError(f"{path}/config.yaml: {error}", RUN_HINT) from None
        return cls(path, config, record)

    @classmethod
    def find(cls, reference: str, runs_dir: Path | str = "runs") -> Run:
        """Open the run that ``reference`` names: a path, an id, the beginning of one, or ``@last``.

        Raises:
            UserError: no run or several runs match, or the run is damaged.
        """
        return cls.open(cls.find_path(reference, runs_dir))

    @staticmethod
    def find_path(reference: str, runs_dir: Path | str = "runs") -> Path:
        """Return the directory of the run that ``reference`` names, without opening it.

        Raises:
            UserError: no run or several runs match.
        """
        if os.path.exists(os.path.join(reference, "run.json")) or "/" in reference:
            return Path(reference)
        if not reference:
            raise UserError("RUN is empty: give an id, its beginning, @last, or a path")
        folder = Path(runs_dir)
        ids = sorted(p.parent.name for p in folder.glob("[!.]*/run.json"))
        matches = (
            ids[-1:]
            if reference == "@last"
            else [i for i in ids if i == reference] or [i for i in ids if i.startswith(reference)]
        )
        if not matches:
            newest = f"the newest there is {ids[-1]}" if ids else "there are none there yet"
            raise UserError(f"no run {reference} in {folder}: {newest}; give an id, its beginning, @last, or a path")
        if len(matches) > 1:
            raise UserError(
                f"{reference} matches {len(matches)} runs in {folder}, {matches[0]} and {matches[1]} among them: "
                "give more of the id"
            )
        return folder / matches[0]

    def reload(self) -> None:
        """Reload configuration and record from disk.

        Raises:
            UserError: its files have been damaged.
        """
        reloaded = Run.open(self.path)
        self.config, self.record = reloaded.config, reloaded.record

    @contextlib.contextmanager
    def editing_record(self) -> Iterator[dict[str, Any]]:
        """Yield ``run.json`` as it is on disk; changes are written at the end of the block (``editing_record``)."""
        with self.reporting_write_errors(), editing_record(self.path) as record:
            yield record
        self.record = record

    def add_job(self, job: dict[str, Any]) -> None:
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
                f"{error.filename or self.path}: {error.strerror}; fix that, "
                f"then continue with: runyard resume {self.cli_reference}"
            ) from error

    def acquire_lease(self) -> Lease:
        """Acquire the right to write this run; it is held until released or until this process ends.

        Raises:
            UserError: another process holds it, or the directory cannot be written.
        """
        with self.reporting_write_errors():
            lease = Lease(self.path, self.id)
            if lease.fencing:
                self._fence_previous_holder()
            return lease

    def _fence_previous_holder(self) -> None:
        """Move away what the previous holder may have open or prepared, so that a last write of it has no effect."""
        if self.journal_path.exists():
            write_atomic(self.journal_path, self.journal_path.read_bytes())
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


@contextlib.contextmanager
def editing_record(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the record of the run in this directory as it is on disk, and write it at the end of the block.

    A lock keeps other processes from changing it meanwhile, if the file system has locks.

    Raises:
        UserError: the record is damaged.
        OSError: it cannot be written.
    """
    with exclusive_lock(run / RECORD_LOCK):
        record = _read_record(run)
        yield record
        write_atomic(run / "run.json", json.dumps(record, indent=1))


def sweeps_dir(runs_dir: Path | str) -> Path:
    """Return where this user's sweeps keep files that all of their runs share, such as what the jobs unpickle."""
    return Path(runs_dir).absolute() / per_user_name(".sweeps")


def new_id(name: str) -> str:
    """Return a new id for a run or a sweep, unique and sortable by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{secrets.token_hex(2)}"


def is_plain_name(name: str) -> bool:
    """Return whether ``name`` is one plain path component, not hidden: a run's files go wherever its id says."""
    return name == Path(name).name != "" and not name.startswith(".") and name.isprintable()


def check_record(record: dict[str, Any]) -> None:
    """Verify that the id in ``run.json`` names a directory, and that its jobs have valid ids and fields.

    Raises:
        ValueError: the message says what is wrong.
    """
    if not isinstance(record.get("id"), str) or not isinstance(record.get("jobs"), list):
        raise ValueError("id or jobs")
    if not is_plain_name(record["id"]):
        raise ValueError(f"id {record['id']!r}: no plain name")
    pending_submission = record.get("submission", {"token": "0", "submitted": 0})
    if (
        not isinstance(pending_submission, dict)
        or not re.fullmatch("[0-9a-f]+", str(pending_submission.get("token")))
        or ("submitted" not in pending_submission)
    ):
        raise ValueError(f"submission: {pending_submission!r}")
    for job in [*record["jobs"], pending_submission | {"id": "0"}]:
        if not isinstance(job, dict) or not isinstance(job.get("id"), str):
            raise ValueError(f"jobs: {job!r}: no mapping with an id")
        for key in job.keys() & JOB_TYPES.keys():
            if not isinstance(job[key], JOB_TYPES[key]):
                raise ValueError(f"jobs: {job['id']}: {key}={job[key]!r}")
        if not _is_log_dir(job.get("logs", "slurm")):
            raise ValueError(f"jobs: {job['id']}: logs={job['logs']!r}: neither in the run nor beside it")
        if not re.fullmatch(r"[0-9]+(_[0-9]+)?", job["id"]):  # SLURM's number, or a local process id
            raise ValueError(f"jobs: {job['id']!r} is no job id")


def _is_log_dir(folder: str) -> bool:
    """Return whether it is a folder in the run's directory, or in the folder of runs, which has those of sweeps."""
    parts = PurePosixPath(folder).parts
    inside = parts[1:] if parts[:1] == ("..",) else parts
    return bool(inside) and all(is_plain_name(part.removeprefix(".")) for part in inside)


def _read_record(run: Path) -> dict[str, Any]:
    record = _read_mapping(run / "run.json", json.loads)
    if record.get("format") != RUN_FORMAT:
        raise UserError(
            f"{run}/run.json: format {record.get('format')!r}, expected {RUN_FORMAT!r}: not of this version"
        )
    record.setdefault("jobs", [])
    try:
        check_record(record)
    except ValueError as error:
        raise UserError(f"{run}/run.json: damaged ({error}); {RUN_HINT}") from None
    return record


def _read_mapping(file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        values = parse(read_within(file.parent, file.name).decode())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{file.parent}: no run directory (it lacks {file.name}); give an id, @last or a path; "
            "`runyard submit` creates one"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: cannot read it ({error.strerror}); {file_fix(error)}") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file}: damaged ({(str(error).splitlines() or ['?'])[0]}); {RUN_HINT}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: damaged (no mapping of names to values); {RUN_HINT}")
    return values
