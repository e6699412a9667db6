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
from runyard.file_lock import alone
from runyard.files import read_within, sha256, write_atomic
from runyard.ownership import keep_private, of_this_user, private_folder, require_own
from runyard.runs import journal
from runyard.runs.lease import Lease, holder, successor
from runyard.runs.snapshot import STORE, snapshot

FORMAT = "runyard-run-1"
RECORD_LOCK = ".record-lock"
MEND = "restore it, or start another run with `runyard submit`"
JOB_TYPES: dict[str, type | tuple[type, ...]] = {"launcher": str, "logs": str, "submitted": (int, float), "nodes": int}
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


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
    def code(self) -> Path:
        """The snapshot of the sources this run was created from; put first on a job's PYTHONPATH."""
        return (self.path / "code").resolve()

    @property
    def reference(self) -> str:
        """What names this run on a command line typed here: its id where it lies in ./runs, else its path."""
        return self.id if self.path == Path("runs", self.id).absolute() else str(self.path)

    @property
    def finished(self) -> bool:
        """Its journal says so, for as many epochs as the configuration asks."""
        rows, _ = journal.read(self.journal_path)
        ended = any(row["event"] == "stop" and row.get("reason") == "finished" for row in rows)
        return ended and [row["epoch"] for row in journal.epochs(rows)][-1:] == [self.config.epochs]

    @property
    def edited(self) -> bool:
        """Somebody changed config.yaml after the run was created."""
        noted = self.record.get("config_sha256")
        return noted is not None and noted != sha256(self.path / "config.yaml")

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
        keep_private(group_reads=group_reads)
        run_id = new_id(config.name)
        making = runs_dir / f".making-{run_id}"
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
            private_folder(making, group_reads=group_reads)
            try:
                code_hash = snapshot(runs_dir / STORE, group_reads=group_reads)
                write_atomic(making / "config.yaml", yaml.safe_dump(schema.to_dict(config), sort_keys=False))
                record = {
                    "format": FORMAT,
                    "id": run_id,
                    "name": config.name,
                    "created": time.time(),
                    "code_sha256": code_hash,
                    "config_sha256": sha256(making / "config.yaml"),
                    "overrides": overrides,
                    "sweep": sweep,
                    **({} if trial is None else {"trial": trial}),
                    **({} if wandb is None else {"wandb": wandb}),
                    "jobs": [],
                }
                (making / "checkpoints").mkdir()
                (making / "slurm").mkdir()
                (making / "code").symlink_to(Path("..") / STORE / code_hash[:16])
                write_atomic(making / "run.json", json.dumps(record, indent=1))
                making.rename(runs_dir / run_id)
            except BaseException:
                shutil.rmtree(making, ignore_errors=True)
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
        record = _record(path)
        try:
            config = schema.from_dict(_mapping(path / "config.yaml", yaml.safe_load))
        except UserError as error:
            said = str(error) if str(path) in str(error) else f"{path}/config.yaml: {error}; {MEND}"
            raise UserError(said) from None
        return cls(path, config, record)

    @classmethod
    def find(cls, reference: str, runs_dir: Path | str = "runs") -> Run:
        """The run that ``reference`` names: a path, an id, the beginning of one, or ``@last``.

        Raises:
            UserError: none or several fit, or it is damaged.
        """
        return cls.open(cls.locate(reference, runs_dir))

    @staticmethod
    def locate(reference: str, runs_dir: Path | str = "runs") -> Path:
        """The directory of the run that ``reference`` names, unopened.

        Raises:
            UserError: none or several fit.
        """
        if os.path.exists(os.path.join(reference, "run.json")) or "/" in reference:
            return Path(reference)
        if not reference:
            raise UserError("RUN is empty: give an id, its beginning, @last, or a path")
        folder = Path(runs_dir)
        ids = sorted(p.parent.name for p in folder.glob("[!.]*/run.json"))
        fits = (
            ids[-1:]
            if reference == "@last"
            else [i for i in ids if i == reference] or [i for i in ids if i.startswith(reference)]
        )
        if not fits:
            newest = f"the newest there is {ids[-1]}" if ids else "there are none there yet"
            raise UserError(f"no run {reference} in {folder}: {newest}; give an id, its beginning, @last, or a path")
        if len(fits) > 1:
            raise UserError(
                f"{reference} fits {len(fits)} runs in {folder}, {fits[0]} and {fits[1]} among them: give more of it"
            )
        return folder / fits[0]

    def read_again(self) -> None:
        """Take over what another command has changed.

        Raises:
            UserError: its files are damaged by now.
        """
        now = Run.open(self.path)
        self.config, self.record = now.config, now.record

    @contextlib.contextmanager
    def updating(self) -> Iterator[dict[str, Any]]:
        """``run.json`` as it is now, written as it is at the block's end (``updating``)."""
        with self.writing(), updating(self.path) as record:
            yield record
        self.record = record

    def add_job(self, job: dict[str, Any]) -> None:
        """Note a job in ``run.json``. Only the submitting side writes that file; jobs write the journal."""
        with self.updating() as record:
            record["jobs"].append(job)

    def amend(self, config: Config, overrides: list[str], said: list[str]) -> None:
        """Go on with other settings, which ``overrides`` make; ``run.json`` keeps what was ``said`` to change them.

        Which may change is the caller's business.
        """
        with self.updating() as record:
            write_atomic(self.path / "config.yaml", yaml.safe_dump(schema.to_dict(config), sort_keys=False))
            record.setdefault("amended", []).append({"t": time.time(), "overrides": said})
            record["overrides"] = overrides
            record["config_sha256"] = sha256(self.path / "config.yaml")
        self.config = config

    def begin_again(self) -> None:
        """Note that the checkpoints saved until now are given up: the run may begin at step 0 again."""
        with self.updating() as record:
            record["from_scratch"] = time.time()

    def note_pruned(self) -> None:
        """Note that its search stopped it for doing worse than the others: it was not interrupted from outside."""
        with self.updating() as record:
            record["pruned"] = True

    def require_own(self, *, instead: str, trusted: bool = False) -> None:
        """Refuse to act for another user's run, unless a person has said that it is ``trusted``.

        Raises:
            UserError: saying whose it is, and what to do ``instead``.
        """
        if not trusted:
            require_own(self.path, f"run {self.id}", instead)

    def keep_private(self) -> None:
        """What this process and its children write from here on, nobody else can read, or as the run's setting says."""
        keep_private(group_reads=self.config.runs_group_readable)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Within the block a disk that is full or cannot be written is the user's to mend: UserError, not OSError."""
        try:
            yield
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise UserError(
                f"{error.filename or self.path}: {error.strerror}; mend that, "
                f"then go on with: runyard resume {self.reference}"
            ) from error

    def lease(self) -> Lease:
        """The right to write this run, held until released or until this process ends.

        Raises:
            UserError: another process holds it, or the directory cannot be written.
        """
        with self.writing():
            lease = Lease(self.path, self.id)
            if lease.fencing:
                self._put_aside()
            return lease

    def _put_aside(self) -> None:
        """What the holder before may have open or prepared gets out of the way: a last write of its reaches nothing."""
        if self.journal_path.exists():
            write_atomic(self.journal_path, self.journal_path.read_bytes())
        for making in self.checkpoints.glob(".making-*"):
            lost = making.with_name(f".making-lost-{secrets.token_hex(4)}")
            with contextlib.suppress(FileNotFoundError):  # complete meanwhile: a checkpoint like any other
                making.rename(lost)
            shutil.rmtree(lost, ignore_errors=True)  # it may be writing there now; the next save clears the rest

    def holder(self) -> str | None:
        """Who writes this run now, in words; None if nobody is known to. Asking leaves the lease as it is."""
        return holder(self.path)

    def successor(self) -> str | None:
        """Who writes this run in the place of the SLURM job that asks: a later start of it, or another process."""
        return successor(self.path)


@contextlib.contextmanager
def updating(run: Path) -> Iterator[dict[str, Any]]:
    """The record of the run in this directory as it is now, written as it is at the block's end. Nobody else changes it
    meanwhile; where the file system has no locks, nearly nobody.

    Raises:
        UserError: it is damaged.
        OSError: it cannot be written.
    """
    with alone(run / RECORD_LOCK):
        record = _record(run)
        yield record
        write_atomic(run / "run.json", json.dumps(record, indent=1))


def sweeps(runs_dir: Path | str) -> Path:
    """Where this user's sweeps keep what belongs to all of their runs, a folder each: what jobs unpickle, for one."""
    return Path(runs_dir).absolute() / of_this_user(".sweeps")


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
    intended = record.get("submission", {"token": "0", "submitted": 0})
    if not isinstance(intended, dict) or not re.fullmatch("[0-9a-f]+", str(intended.get("token"))) or (
        "submitted" not in intended
    ):
        raise ValueError(f"submission: {intended!r}")
    for job in [*record["jobs"], intended | {"id": "0"}]:
        if not isinstance(job, dict) or not isinstance(job.get("id"), str):
            raise ValueError(f"jobs: {job!r}: no mapping with an id")
        for key in job.keys() & JOB_TYPES.keys():
            if not isinstance(job[key], JOB_TYPES[key]):
                raise ValueError(f"jobs: {job['id']}: {key}={job[key]!r}")
        if not _holds_logs(job.get("logs", "slurm")):
            raise ValueError(f"jobs: {job['id']}: logs={job['logs']!r}: neither in the run nor beside it")
        if job.get("launcher") == "slurm" and not re.fullmatch(r"[0-9]+(_[0-9]+)?", job["id"]):
            raise ValueError(f"jobs: {job['id']!r} is no job of SLURM")


def _holds_logs(place: str) -> bool:
    """Whether it is a folder in the run's directory, or in the folder of runs, where sweeps have theirs."""
    parts = PurePosixPath(place).parts
    inside = parts[1:] if parts[:1] == ("..",) else parts
    return bool(inside) and all(is_plain_name(part.removeprefix(".")) for part in inside)


def _record(run: Path) -> dict[str, Any]:
    record = _mapping(run / "run.json", json.loads)
    if record.get("format") != FORMAT:
        raise UserError(f"{run}/run.json: format {record.get('format')!r}, expected {FORMAT!r}: not of this version")
    record.setdefault("jobs", [])
    try:
        check_record(record)
    except ValueError as error:
        raise UserError(f"{run}/run.json: damaged ({error}); {MEND}") from None
    return record


def _mapping(file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
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
        raise UserError(f"{file}: damaged ({(str(error).splitlines() or ['?'])[0]}); {MEND}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: damaged (no mapping of names to values); {MEND}")
    return values
