"""A run is a directory: a frozen configuration, an identity, the code that was submitted, and what came of it.

The login node creates it; a job is given nothing but its path. It imports no torch.
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
from runyard.files import read_within, sha256, write_atomic
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
    """One run's directory. ``Run.create`` makes it, ``Run.open`` and ``Run.find`` return to it.

    Attributes:
        path: The directory, absolute.
        config: The frozen configuration.
        record: ``run.json`` as it was read or written last: id, name, creation time, hashes of code and configuration,
            the overrides it was made with, its jobs, and a ``submission`` that has not come to one yet.
    """

    def __init__(self, path: Path, config: Config, record: dict[str, Any]) -> None:
        self.path, self.config, self.record = path, config, record

    @property
    def id(self) -> str:
        """Sortable and unique."""
        return str(self.record["id"])

    @property
    def wandb_id(self) -> str:
        """Of its record at W&B: its own id, or the one that W&B's sweep agent was given for it."""
        return str((self.record.get("wandb") or self.record)["id"])

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def journal_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def code_path(self) -> Path:
        """The snapshot of the sources this run was created from; put first on a job's PYTHONPATH."""
        return (self.path / "code").resolve()

    @property
    def cli_reference(self) -> str:
        """What names this run on a command line typed here: its id where it lies in ./runs, else its path."""
        return self.id if self.path == Path("runs", self.id).absolute() else str(self.path)

    @property
    def is_finished(self) -> bool:
        """Its journal says so, for as many epochs as the configuration asks."""
        rows, _ = journal.read_journal(self.journal_path)
        ended = any(row["event"] == "stop" and row.get("reason") == "finished" for row in rows)
        return ended and [row["epoch"] for row in journal.epochs(rows)][-1:] == [self.config.epochs]

    @property
    def config_edited(self) -> bool:
        """Somebody changed config.yaml after the run was created."""
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
        """A new directory under ``config.runs_dir``, complete before it gets its name, alone or in a ``sweep``.

        Of a sweep that searches, it is the run of the ``trial`` of that number; of a sweep at W&B, ``wandb`` says which
        run it is there.

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
        """The run in this directory.

        Raises:
            UserError: it is no run directory, or its files are damaged.
        """
        path = Path(path).absolute()
        record = _read_record(path)
        try:
            config = schema.config_from_dict(_read_mapping(path / "config.yaml", yaml.safe_load))
        except UserError as error:
            said = str(error) if str(path) in str(error) else f"{path}/config.yaml: {error}; {RUN_HINT}"
            raise UserError(said) from None
        return cls(path, config, record)

    @classmethod
    def find(cls, reference: str, runs_dir: Path | str = "runs") -> Run:
        """The run that ``cli_reference`` names: a path, an id, the beginning of one, or ``@last``.

        Raises:
            UserError: none or several fit, or it is damaged.
        """
        return cls.open(cls.find_path(reference, runs_dir))

    @staticmethod
    def find_path(reference: str, runs_dir: Path | str = "runs") -> Path:
        """The directory of the run that ``cli_reference`` names, unopened.

        Raises:
            UserError: none or several fit.
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
                f"{reference} fits {len(matches)} runs in {folder}, {matches[0]} and {matches[1]} among them: "
                "give more of it"
            )
        return folder / matches[0]

    def reload(self) -> None:
        """Take over what another command has changed.

        Raises:
            UserError: its files are damaged by now.
        """
        now = Run.open(self.path)
        self.config, self.record = now.config, now.record

    @contextlib.contextmanager
    def editing_record(self) -> Iterator[dict[str, Any]]:
        """``run.json`` as it is now, written as it is at the block's end (``editing_record``)."""
        with self.reporting_write_errors(), editing_record(self.path) as record:
            yield record
        self.record = record

    def add_job(self, job: dict[str, Any]) -> None:
        """Note a job in ``run.json``. Only the submitting side writes that file; jobs write the journal."""
        with self.editing_record() as record:
            record["jobs"].append(job)

    def change_settings(self, config: Config, overrides: list[str], said: list[str]) -> None:
        """Go on with other settings, which ``overrides`` make; ``run.json`` keeps what was ``said`` to change them.

        Which may change is the caller's business.
        """
        with self.editing_record() as record:
            write_atomic(self.path / "config.yaml", yaml.safe_dump(schema.config_to_dict(config), sort_keys=False))
            record.setdefault("amended", []).append({"t": time.time(), "overrides": said})
            record["overrides"] = overrides
            record["config_sha256"] = sha256(self.path / "config.yaml")
        self.config = config

    def allow_restart_from_scratch(self) -> None:
        """Note that the checkpoints saved until now are given up: the run may begin at step 0 again."""
        with self.editing_record() as record:
            record["from_scratch"] = time.time()

    def mark_pruned(self) -> None:
        """Note that its search stopped it for doing worse than the others: it was not interrupted from outside."""
        with self.editing_record() as record:
            record["pruned"] = True

    def require_own(self, *, instead: str, trusted: bool = False) -> None:
        """Refuse to act for another user's run, unless a person has said that it is ``trusted``.

        Raises:
            UserError: saying whose it is, and what to do ``instead``.
        """
        if not trusted:
            require_owner(self.path, f"run {self.id}", instead)

    def set_umask(self) -> None:
        """What this process and its children write from here on, nobody else can read, or as the run's setting says."""
        set_umask(group_reads=self.config.runs_group_readable)

    @contextlib.contextmanager
    def reporting_write_errors(self) -> Iterator[None]:
        """Within the block a disk that is full or cannot be written is the user's to mend: UserError, not OSError."""
        try:
            yield
        except OSError as error:
            if error.errno not in UNWRITABLE_ERRNOS:
                raise
            raise UserError(
                f"{error.filename or self.path}: {error.strerror}; mend that, "
                f"then go on with: runyard resume {self.cli_reference}"
            ) from error

    def acquire_lease(self) -> Lease:
        """The right to write this run, held until released or until this process ends.

        Raises:
            UserError: another process holds it, or the directory cannot be written.
        """
        with self.reporting_write_errors():
            lease = Lease(self.path, self.id)
            if lease.fencing:
                self._fence_previous_holder()
            return lease

    def _fence_previous_holder(self) -> None:
        """What the holder before may have open or prepared gets out of the way: a last write of its reaches nothing."""
        if self.journal_path.exists():
            write_atomic(self.journal_path, self.journal_path.read_bytes())
        for tmp_dir in self.checkpoints.glob(".making-*"):
            lost = tmp_dir.with_name(f".making-lost-{secrets.token_hex(4)}")
            with contextlib.suppress(FileNotFoundError):  # complete meanwhile: a checkpoint like any other
                tmp_dir.rename(lost)
            shutil.rmtree(lost, ignore_errors=True)  # it may be writing there now; the next save clears the rest

    def lease_holder(self) -> str | None:
        """Who writes this run now, in words; None if nobody is known to. Asking leaves the lease as it is."""
        return lease_holder(self.path)

    def successor(self) -> str | None:
        """Who writes this run in the place of the SLURM job that asks: a later start of it, or another process."""
        return successor_text(self.path)


@contextlib.contextmanager
def editing_record(run: Path) -> Iterator[dict[str, Any]]:
    """The record of the run in this directory as it is now, written as it is at the block's end. Nobody else changes it
    meanwhile; where the file system has no locks, nearly nobody.

    Raises:
        UserError: it is damaged.
        OSError: it cannot be written.
    """
    with exclusive_lock(run / RECORD_LOCK):
        record = _read_record(run)
        yield record
        write_atomic(run / "run.json", json.dumps(record, indent=1))


def sweeps_dir(runs_dir: Path | str) -> Path:
    """Where this user's sweeps keep what belongs to all of their runs, a folder each: what jobs unpickle, for one."""
    return Path(runs_dir).absolute() / per_user_name(".sweeps")


def new_id(name: str) -> str:
    """Of a run or a sweep: sorts by time, and is no other's."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{secrets.token_hex(2)}"


def is_plain_name(name: str) -> bool:
    """Whether it names one thing within a folder, and nothing hidden: a run's files go wherever its id says."""
    return name == Path(name).name != "" and not name.startswith(".") and name.isprintable()


def check_record(record: dict[str, Any]) -> None:
    """See that ``run.json``'s id names a directory, and that its jobs can be asked for.

    Raises:
        ValueError: what is wrong, in words.
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
        if job.get("launcher") == "slurm" and not re.fullmatch(r"[0-9]+(_[0-9]+)?", job["id"]):
            raise ValueError(f"jobs: {job['id']!r} is no job of SLURM")


def _is_log_dir(place: str) -> bool:
    """Whether it is a folder in the run's directory, or in the folder of runs, where sweeps have theirs."""
    parts = PurePosixPath(place).parts
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
            "`runyard submit` makes one"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: cannot read it ({error.strerror}); mend its permissions") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file}: damaged ({(str(error).splitlines() or ['?'])[0]}); {RUN_HINT}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: damaged (no mapping of names to values); {RUN_HINT}")
    return values
