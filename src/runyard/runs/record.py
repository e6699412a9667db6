"""``run.json``, a run's identity and its jobs, and ``config.yaml``: the only readers of both, which refuse what is odd.

Submitting commands write it, one at a time; jobs write the journal. Fields that this version does not know are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired, TypedDict, cast

import yaml

from runyard.errors import UserError
from runyard.file_lock import exclusive_lock
from runyard.files import file_fix, read_within, write_atomic
from runyard.runs.events import finite_or_none

RUN_FORMAT = "runyard-run-1"
RECORD_LOCK = ".record-lock"
RECORD_LOCK_WAIT_S = 60.0  # others hold it for moments
RUN_HINT = "restore it, or start another run with `runyard submit`"
JOB_ID = re.compile(r"[0-9]+(_[0-9]+)?")  # SLURM's, or a process id on this machine
FAST_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, if libyaml is installed
MAX_FAST_YAML_BYTES = 1 << 14  # deep nesting, which takes many bytes, crashes libyaml; Python raises RecursionError
Kind = type | tuple[type, ...]
JOB_KINDS: dict[str, Kind] = {"launcher": str, "logs": str, "submitted": (int, float), "nodes": int, "name": str,
                              "tasks_per_node": int, "tasks": int, "task": int, "chain": int}  # fmt: skip
RECORD_KINDS: dict[str, Kind] = {"name": str, "overrides": list, "wandb": dict, "trial": int,
                                 "from_scratch": (int, float), "sweep": (str, type(None))}  # fmt: skip


class JobRecord(TypedDict, total=False):
    """A job of a run; all of it but ``id`` may be missing. A ``submission`` is one that has no id yet.

    That of a chain says of how many jobs, ``chain``; these then have one ``token``. In a job of several runs this one
    is ``task``.
    """

    id: str
    launcher: str
    cluster: str
    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    tasks: int
    task: int
    submitted: float
    logs: str
    token: str
    name: str
    chain: int


class WandbAssignment(TypedDict, total=False):
    """Which run of which sweep at W&B a run is."""

    id: str
    sweep: str
    drawn: dict[str, object]


class RunRecord(TypedDict):
    """What ``run.json`` says; docs/file-formats.md explains its fields."""

    format: str
    id: str
    name: str
    created: float
    code_sha256: NotRequired[str]
    config_sha256: NotRequired[str]
    overrides: list[str]
    sweep: str | None
    trial: NotRequired[int]
    wandb: NotRequired[WandbAssignment]
    jobs: list[JobRecord]
    submission: NotRequired[JobRecord]
    amended: NotRequired[list[dict[str, object]]]
    from_scratch: NotRequired[float]
    pruned: NotRequired[bool]


def blank_record(run_id: str) -> RunRecord:
    """Return the record of a run of which nothing but its id is known."""
    return {"format": RUN_FORMAT, "id": run_id, "name": "", "created": 0.0, "overrides": [], "sweep": None, "jobs": []}


def read_record(run: Path) -> RunRecord:
    """Read the record of the run in this directory. What older versions left out has an empty value.

    Raises:
        UserError: there is no run in it, or ``run.json`` is damaged or of another format.
    """
    file = run / "run.json"
    try:
        values = json.loads(read_within(run, "run.json"))
        if not isinstance(values, dict):
            raise ValueError("no mapping of names to values")
        if values.get("format") != RUN_FORMAT:
            raise UserError(
                f"{file}: format {values.get('format')!r}, and this version reads {RUN_FORMAT!r}",
                "use the version of runyard that created the run",
            )
        blank = blank_record("")
        record = cast(RunRecord, values | {k: v for k, v in blank.items() if k not in values})  # in the file's order
        record["created"] = finite_or_none(values, "created") or 0.0  # it decides nothing but an order
        _check(record)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{run}: no run directory (it lacks run.json)", "give an id, @last or a path; `runyard submit` creates one"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: cannot read it ({error.strerror})", file_fix(error)) from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({(str(error).splitlines() or ['?'])[0]})", RUN_HINT) from None
    return record


def read_settings(run: Path) -> tuple[dict[str, object], str]:
    """Read ``config.yaml`` of the run in this directory. Returns the values in it, and its sha256.

    Raises:
        UserError: there is no run in it, or the file is damaged.
    """
    file = run / "config.yaml"
    try:
        content = read_within(run, file.name)
        fast = len(content) <= MAX_FAST_YAML_BYTES
        values = yaml.load(content, FAST_YAML_LOADER if fast else yaml.SafeLoader)
        if not isinstance(values, dict):
            raise ValueError("no mapping of names to values")
    except FileNotFoundError:
        raise UserError(f"{run}: no run directory (it lacks {file.name})", RUN_HINT) from None
    except OSError as error:
        raise UserError(f"{file}: cannot read it ({error.strerror})", file_fix(error)) from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file}: damaged ({(str(error).splitlines() or ['?'])[0]})", RUN_HINT) from None
    return values, hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def editing_record(run: Path) -> Iterator[RunRecord]:
    """Yield the record of the run in this directory as it is on disk, and write it at the end of the block.

    A lock keeps other processes from changing it meanwhile, if the file system has locks.

    Raises:
        UserError: the record is damaged.
        OSError: it cannot be written, or another process has held its lock for a minute (``TimeoutError``).
    """
    with exclusive_lock(run / RECORD_LOCK, RECORD_LOCK_WAIT_S):
        record = read_record(run)
        yield record
        write_atomic(run / "run.json", json.dumps(record, indent=1))


def is_plain_name(name: str) -> bool:
    """Return whether ``name`` is one plain path component, not hidden: a run's files go wherever its id says."""
    return name == Path(name).name != "" and not name.startswith(".") and name.isprintable()


def _check(record: RunRecord) -> None:
    """Verify that the id names a directory, and that the jobs have valid ids and fields.

    Raises:
        ValueError: the message says what is wrong.
    """
    if not isinstance(record.get("id"), str) or not isinstance(record["jobs"], list):
        raise ValueError("id or jobs")
    if not is_plain_name(record["id"]):
        raise ValueError(f"id {record['id']!r}: no plain name")
    _check_kinds(record, RECORD_KINDS, "")
    nothing: JobRecord = {"token": "0", "submitted": 0}
    pending = record.get("submission", nothing)
    if (
        not isinstance(pending, dict)
        or not re.fullmatch("[0-9a-f]+", str(pending.get("token")))
        or "submitted" not in pending
    ):
        raise ValueError(f"submission: {pending!r}")
    checked: list[JobRecord] = [*record["jobs"], {**pending, "id": "0"}]
    for job in checked:
        if not isinstance(job, dict) or not isinstance(job.get("id"), str):
            raise ValueError(f"jobs: {job!r}: no mapping with an id")
        _check_kinds(job, JOB_KINDS, f"jobs: {job['id']}: ")
        if not _is_log_dir(job.get("logs", "slurm")):
            raise ValueError(f"jobs: {job['id']}: logs={job['logs']!r}: neither in the run nor beside it")
        if not JOB_ID.fullmatch(job["id"]):
            raise ValueError(f"jobs: {job['id']!r} is no job id")


def _check_kinds(values: object, kinds: dict[str, Kind], where: str) -> None:
    assert isinstance(values, dict)
    for name in kinds.keys() & values.keys():
        if not isinstance(values[name], kinds[name]):
            raise ValueError(f"{where}{name}={values[name]!r}")


def _is_log_dir(folder: str) -> bool:
    """Return whether it is a folder in the run's directory, or in the folder of runs, which has those of sweeps."""
    parts = PurePosixPath(folder).parts
    inside = parts[1:] if parts[:1] == ("..",) else parts
    return bool(inside) and all(is_plain_name(part.removeprefix(".")) for part in inside)
