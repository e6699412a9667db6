"""From a run's directory to its ``History``.

Reading is lenient where a run's own program is strict: a run made by an older or newer version of the schema is
compared by the settings it has, and a damaged line costs that line.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from runyard.errors import UserError
from runyard.files import read_within
from runyard.runs import journal
from runyard.runs.history import FlatSettings, RunHistory, Start, finite_or_nan
from runyard.runs.journal import Row
from runyard.runs.run import is_plain_name

MAX_COUNT = 2**53  # no epoch, step or rank of a journal that is in order; beyond, floats lose count
ACTIVE_WITHIN_S = 600.0  # an unfinished run that wrote something within this long is said to be running
NOT_IDENTITY_PREFIXES = ("runs_", "data.root", "data.path", "data.sources", "tracking.", "checkpoint.", "cluster.")
IDENTITY_EXCEPTIONS = ("cluster.nodes", "cluster.tasks_per_node", "cluster.gpus_per_node")
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is there


def load_history(directory: Path) -> RunHistory:
    """The run in this directory.

    Raises:
        UserError: run.json or config.yaml is missing or damaged, or the journal is there and cannot be read.
            Everything else may be missing.
    """
    directory = directory.absolute()
    record = read_record(directory)
    config, config_sha256 = _config(directory / "config.yaml")
    settings = flatten(config)
    try:
        rows, broken = journal.read_journal(directory / "metrics.jsonl")
        broken_lines, half_written = _broken(directory / "metrics.jsonl") if broken else ((), False)
    except OSError as error:
        raise UserError(f"{directory}/metrics.jsonl: cannot read it ({error.strerror})") from None
    chapters = _split_by_start(rows)
    alive = _last_progress_time(directory)
    starts = tuple(_start(c, alive if c is chapters[-1] else 0.0) for c in chapters[1:])
    state, message = _state(chapters[-1], starts)
    if record.get("pruned") is True and state in ("interrupted", "silent"):
        state, message = "pruned", "its search stopped it: below the median of the others"
    final = next((row for row in reversed(rows) if row["event"] == "final"), {})
    counts = [
        c
        for c in (final.get("parameters"), *(r.get("parameters") for r in rows if r["event"] == "start"))
        if isinstance(c, int)
    ]
    data, data_sha256, test_sha256 = _data(directory / "data.json")
    named = final.get("classes") or data.get("classes")
    tags = settings.get("tracking.tags")
    return RunHistory(
        id=str(record.get("id", directory.name)),
        name=str(settings.get("name", record.get("name", ""))),
        directory=directory,
        settings=settings,
        settings_sha256=_sha256(
            {k: v for k, v in settings.items() if k != "seed" and v is not None and affects_learning(k)}
        ),
        edited=record.get("config_sha256") not in (None, config_sha256),
        code_sha256=str(record.get("code_sha256", "")),
        tags=tuple(map(str, tags)) if isinstance(tags, list) else (),
        sweep=record["sweep"] if isinstance(record.get("sweep"), str) else None,
        created=finite_or_nan(record.get("created")),
        state=state,
        message=message,
        series=_series([row for row in journal.epochs(rows) if 1 <= row["epoch"] <= MAX_COUNT], starts),
        starts=starts,
        final=final,
        parameters=counts[0] if counts else None,
        broken_lines=broken_lines,
        last_line_truncated=half_written,
        data_name=str(settings.get("data.name", data.get("name", ""))),
        data_sha256=data_sha256,
        test_sha256=test_sha256,
        classes=tuple(map(str, named)) if isinstance(named, list) else (),
    )


def affects_learning(setting: str) -> bool:
    """Whether the setting says what is learned and on how much, rather than where files lie and who is told."""
    return setting in IDENTITY_EXCEPTIONS or not setting.startswith(NOT_IDENTITY_PREFIXES)


def flatten(values: Mapping[str, Any], path: str = "") -> FlatSettings:
    """Nested settings by dotted name."""
    out: FlatSettings = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{path}{key}.")
        else:
            out[f"{path}{key}"] = value
    return out


def read_record(directory: Path) -> dict[str, Any]:
    """``run.json``.

    Raises:
        UserError: missing or damaged.
    """
    try:
        record = json.loads(read_within(directory, "run.json"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{directory}: no run directory (it lacks run.json)") from None
    except OSError as error:
        raise UserError(f"{directory}/run.json: cannot read it ({error.strerror})") from None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{directory}/run.json: damaged (no JSON object)")
    if not is_plain_name(named := str(record.get("id", directory.name))):
        raise UserError(f"{directory}/run.json: damaged (id {named!r}: no plain name)")
    return record


def _config(path: Path) -> tuple[dict[str, Any], str]:
    """The configuration, and the file's sha256."""
    try:
        content = read_within(path.parent, path.name)
        values = yaml.load(content, LOADER)  # a safe loader
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({(str(error).splitlines() or ['?'])[0]})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged (no mapping of names to values)")
    return values, hashlib.sha256(content).hexdigest()


def _broken(path: Path) -> tuple[tuple[int, ...], bool]:
    """Numbers of the lines that hold no event, and whether the last line is one of them and lacks its end."""
    lines = read_within(path.parent, path.name, max_bytes=journal.MAX_JOURNAL_BYTES).split(b"\n")
    bad = []
    for at, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else {"event": ""}
        except (ValueError, RecursionError):
            row = None
        if not (isinstance(row, dict) and isinstance(row.get("event"), str)):
            bad.append(at)
    return tuple(bad), bad[-1:] == [len(lines)]


def _last_progress_time(directory: Path) -> float:
    """When progress.json was last written, unix seconds; 0 where it was not."""
    try:
        value = json.loads(read_within(directory, "progress.json"))
    except (OSError, ValueError):
        return 0.0
    return np.nan_to_num(finite_or_nan(value.get("t"))) if isinstance(value, dict) else 0.0


def _split_by_start(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows cut before each start. The first chapter is what came before any start, often nothing."""
    chapters: list[list[Row]] = [[]]
    for row in rows:
        if row["event"] == "start":
            chapters.append([])
        chapters[-1].append(row)
    return chapters


def _start(chapter: list[Row], progress_t: float) -> Start:
    row = chapter[0]
    ends = [r for r in chapter if r["event"] in ("stop", "requeue")]
    times = [t for r in chapter if (t := finite_or_nan(r.get("t"))) == t] or [progress_t]
    said = times[-1]
    ended = finite_or_nan(next((r for r in ends if r["event"] == "stop"), {}).get("t"))
    cause = next((r.get("cause") for r in ends if r["event"] == "requeue"), None)
    return Start(
        start_time=times[0],
        end_time=ended if ended == ended else said if ends else max(said, progress_t),
        step=_count(row, "step", 0),
        epoch=_count(row, "epoch", 0),
        ranks=_count(row, "world_size", 1),
        nodes=_count(row, "nodes", 1),
        device=str(row.get("device") or "cpu"),
        device_name=str(row.get("device_name") or row.get("device") or ""),
        threads=_count(row, "threads", 1),
        hostname=str(row.get("hostname") or ""),
        end_cause=str(cause or (ends[-1].get("reason") or "failed" if ends else "")),
    )


def _count(row: Row, key: str, least: int) -> int:
    value = row.get(key)
    return max(value, least) if isinstance(value, int) and value <= MAX_COUNT else least


def _state(chapter: list[Row], starts: tuple[Start, ...]) -> tuple[str, str]:
    """The run's state by the rows since its last start, and the reason for it."""
    ends = [row for row in chapter if row["event"] in ("stop", "requeue")]
    final = any(row["event"] == "final" for row in chapter)
    if any(row.get("reason") == "finished" for row in ends) or (final and not ends):
        return "finished", ""  # what goes wrong after training has finished does not unfinish it
    if ends and ends[-1]["event"] == "requeue":
        return "waiting", str(ends[-1].get("cause") or "")
    if ends:
        word = "interrupted" if ends[-1].get("reason") == "interrupted" else "failed"
        return word, str(ends[-1].get("message") or "")
    if not starts:
        return "not started", ""
    if time.time() - starts[-1].end_time < ACTIVE_WITHIN_S:
        return "running", ""
    return "silent", f"no sign of life since {_date(starts[-1].end_time)}"


def _date(t: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(t))
    except (ValueError, OverflowError, OSError):  # no date that a machine could have written
        return f"{t:g} s"


def _series(epochs: list[Row], starts: tuple[Start, ...]) -> dict[str, np.ndarray]:
    names = {"epoch": 0, "t": 0} | dict.fromkeys(key for row in epochs for key in row if key != "event")
    table = {name: _column([row.get(name) for row in epochs]) for name in names}
    kept = {name: values for name, values in table.items() if name in ("epoch", "t") or np.isfinite(values).any()}
    for name, width in (("gpu_hours", "gpus"), ("core_hours", "cores")):
        spent = np.zeros(len(epochs))
        for start in starts:
            spent += (
                getattr(start, width)
                * np.clip(table["t"] - start.start_time, 0, start.end_time - start.start_time)
                / 3600
            )
        kept[name] = spent
    return kept


def _column(values: list[Any]) -> np.ndarray:
    plain = set(map(type, values)) <= {int, float, type(None)}
    try:
        column = np.array(
            values if plain else [finite_or_nan(value) for value in values], np.float64
        )  # None becomes NaN
    except OverflowError:  # an integer that no float holds
        column = np.array([finite_or_nan(value) for value in values], np.float64)
    return np.where(np.isfinite(column), column, np.nan)


def _data(path: Path) -> tuple[dict[str, Any], str | None, str | None]:
    """``data.json``, the identity of its content, and that of the test part. {} and None where it is not there."""
    try:
        return _content_hashes(read_within(path.parent, path.name))
    except OSError:
        return {}, None, None


@functools.lru_cache(maxsize=64)
def _content_hashes(content: bytes) -> tuple[dict[str, Any], str | None, str | None]:
    """Once for all runs of a data set."""
    try:
        data = json.loads(content)
        test = data["splits"]["test"]
        pixels = sorted(test["arrays_sha256"].values()) or [test["beton_sha256"]]  # arrays: by content, not by layout
        held = {"files": pixels, "samples": test["samples"], "classes": data["classes"], "size": data["image_size"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}, None, None
    whole = {key: value for key, value in data.items() if key not in ("name", "source", "writer")}
    return data, _sha256(whole), _sha256(held)


def _sha256(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
