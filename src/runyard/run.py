"""A run is a directory: a frozen configuration, an identity, the code that was submitted, and what came of it.

The login node creates it; a job is given nothing but its path. It imports no torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from runyard import config as schema
from runyard.config import Config
from runyard.errors import UserError
from runyard.files import write_atomic

FORMAT = "runyard-run-1"


class Run:
    """One run's directory. ``Run.create`` makes it, ``Run.open`` and ``Run.find`` return to it.

    Attributes:
        path: The directory, absolute.
        config: The frozen configuration.
        record: ``run.json``: id, name, creation time, code hash, the overrides it was made with, and its jobs.
    """

    def __init__(self, path: Path, config: Config, record: dict[str, Any]) -> None:
        self.path, self.config, self.record = path, config, record

    @property
    def id(self) -> str:
        """Sortable and unique; also the W&B run's id."""
        return str(self.record["id"])

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

    @classmethod
    def create(cls, config: Config, overrides: list[str]) -> Run:
        """A new directory under ``config.runs_dir``, complete before it gets its name.

        Raises:
            UserError: the folder cannot be written.
        """
        runs_dir = Path(config.runs_dir).absolute()
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.name}-{secrets.token_hex(2)}"
        making = runs_dir / f".making-{run_id}"
        try:
            making.mkdir(parents=True)
            try:
                code_hash = _snapshot_code(runs_dir / ".code")
                record = {
                    "format": FORMAT,
                    "id": run_id,
                    "name": config.name,
                    "created": time.time(),
                    "code_sha256": code_hash,
                    "overrides": overrides,
                    "jobs": [],
                }
                (making / "checkpoints").mkdir()
                (making / "slurm").mkdir()
                (making / "code").symlink_to(Path("..") / ".code" / code_hash[:16])
                write_atomic(making / "config.yaml", yaml.safe_dump(schema.to_dict(config), sort_keys=False))
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
        try:
            record = json.loads((path / "run.json").read_text())
            if record.get("format") != FORMAT:
                raise UserError(
                    f"{path}/run.json: format {record.get('format')!r}, expected {FORMAT!r}: not of this version"
                )
            config = schema.from_dict(yaml.safe_load((path / "config.yaml").read_text()))
        except (OSError, NotADirectoryError):
            raise UserError(
                f"{path}: no run directory (expected run.json and config.yaml in it); `runyard submit` makes one"
            ) from None
        except (ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
            raise UserError(
                f"{path}: run.json or config.yaml is damaged ({str(error).splitlines()[0]}); "
                "restore it, or start anew with `runyard submit`"
            ) from None
        return cls(path, config, record)

    @classmethod
    def find(cls, reference: str, runs_dir: Path | str = "runs") -> Run:
        """The run that ``reference`` names: a path, an id, the beginning of one, or ``@last``.

        Raises:
            UserError: none or several fit.
        """
        if (Path(reference) / "run.json").exists() or "/" in reference:
            return cls.open(reference)
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
        return cls.open(folder / fits[0])

    def add_job(self, job: dict[str, Any]) -> None:
        """Note a submission in ``run.json``. Only the submitting side writes that file; jobs write the journal."""
        self.record["jobs"].append(job)
        write_atomic(self.path / "run.json", json.dumps(self.record, indent=1))

    def lease(self) -> Lease:
        """The right to write this run, held until released or until this process ends.

        Raises:
            UserError: another process holds it.
        """
        return Lease(self)


class Lease:
    """An exclusive lock on the run's ``lease`` file: the kernel gives it back when its holder dies."""

    def __init__(self, run: Run) -> None:
        self._file = open(run.path / "lease", "a+")  # noqa: SIM115  held open for the lease's life
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise UserError(f"run {run.id} is being written by {holder}: wait for it, or stop it first") from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {os.uname().nodename}")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def _snapshot_code(store: Path) -> str:
    """Copy the packages into ``store``/HASH, once per content, and return the hash.

    The store is shared by all runs: equal code keeps one path, so its compiled kernels are cached across runs.
    """
    root = Path(__file__).parent
    packages = {"runyard": root}
    launcher = root.parents[1] / "cluster"
    if launcher.is_dir():
        packages["cluster"] = launcher
    files = {
        f"{name}/{p.relative_to(folder)}": p for name, folder in packages.items() for p in sorted(folder.rglob("*.py"))
    }
    digest = hashlib.sha256()
    for name, source in files.items():
        digest.update(f"{name}\0".encode() + hashlib.sha256(source.read_bytes()).digest())
    target = store / digest.hexdigest()[:16]
    if not target.exists():
        making = store / f".making-{secrets.token_hex(4)}"
        for name, source in files.items():
            (making / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, making / name)
        try:
            making.rename(target)
        except OSError:
            shutil.rmtree(making)
            if not target.exists():  # not merely a second submission that was quicker
                raise
    return digest.hexdigest()
