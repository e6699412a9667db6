"""Reads a run's directory into a ``RunHistory``.

It is lenient where a run's own program is strict: a run of an older or newer schema version is compared by the settings
it has, and a damaged journal line loses only that line.
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
from runyard.runs.identity import separates_runs
from runyard.runs.journal import Row
from runyard.runs.run import is_plain_name

MAX_COUNT = 2**53  # more than any valid epoch, step or rank; larger integers are not exact as floats
ACTIVE_WITHIN_S = 600.0  # an unfinished run that wrote something within this time counts as running
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, if libyaml is installed


def load_history(directory: Path) -> RunHistory:
    """Read the history of the run in this directory.

    Raises:
        UserError: run.json or config.yaml is missing or damaged, or the journal exists and cannot be read.
            Everything else may be missing.
    """
    directory = directory.absolute()
    record = read_record(directory)
    config, config_sha256 = _config(directory / "config.yaml")
    settings = flatten(config)
    try:
        rows, damaged_count = journal.read_journal(directory / "metrics.jsonl")
        broken_lines, last_line_truncated = _broken(directory / "metrics.jsonl") if damaged_count else ((), False)
    except OSError as error:
        raise UserError(f"{directory}/metrics.jsonl: cannot read it ({error.strerror})") from None
    segments = _split_by_start(rows)
    progress_t = _last_progress_time(directory)
    starts = tuple(_start(s, progress_t if s is segments[-1] else 0.0) for s in segments[1:])
    state, message = _state(segments[-1], starts)
    if record.get("pruned") is True and state in ("interrupted", "silent"):
        state, message = "pruned", "its search stopped it: below the median of the others"
    final = next((row for row in reversed(rows) if row["event"] == "final"), {})
    counts = [
        c
        for c in (final.get("parameters"), *(r.get("parameters") for r in rows if r["event"] == "start"))
        if isinstance(c, int)
    ]
    data, data_sha256, test_sha256 = _data(directory / "data.json")
    classes = final.get("classes") or data.get("classes")
    tags = settings.get("tracking.tags")
    return RunHistory(
        id=str(record.get("id", directory.name)),
        name=str(settings.get("name", record.get("name", ""))),
        directory=directory,
        settings=settings,
        settings_sha256=_sha256(
            {k: v for k, v in settings.items() if k != "seed" and v is not None and separates_runs(k)}
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
        last_line_truncated=last_line_truncated,
        data_name=str(settings.get("data.name", data.get("name", ""))),
        data_sha256=data_sha256,
        test_sha256=test_sha256,
        classes=tuple(map(str, classes)) if isinstance(classes, list) else (),
    )


def flatten(values: Mapping[str, Any], path: str = "") -> FlatSettings:
    """Return nested settings by dotted name."""
    flat: FlatSettings = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = value
    return flat


def read_record(directory: Path) -> dict[str, Any]:
    """Read ``run.json``.

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
    if not is_plain_name(run_id := str(record.get("id", directory.name))):
        raise UserError(f"{directory}/run.json: damaged (id {run_id!r}: no plain name)")
    return record


def _config(path: Path) -> tuple[dict[str, Any], str]:
    """Return the configuration and the file's sha256."""
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
    """Return the numbers of the lines without an event, and whether the last line is one of them and has no end."""
    lines = read_within(path.parent, path.name, max_bytes=journal.MAX_JOURNAL_BYTES).split(b"\n")
    damaged = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else {"event": ""}
        except (ValueError, RecursionError):
            row = None
        if not (isinstance(row, dict) and isinstance(row.get("event"), str)):
            damaged.append(number)
    return tuple(damaged), damaged[-1:] == [len(lines)]


def _last_progress_time(directory: Path) -> float:
    """Return when progress.json was last written, in unix seconds; 0 if it was not."""
    try:
        value = json.loads(read_within(directory, "progress.json"))
    except (OSError, ValueError):
        return 0.0
    return np.nan_to_num(finite_or_nan(value.get("t"))) if isinstance(value, dict) else 0.0


def _split_by_start(rows: Iterable[Row]) -> list[list[Row]]:
    """Split the rows before each start. The first segment has the rows before any start, often none."""
    segments: list[list[Row]] = [[]]
    for row in rows:
        if row["event"] == "start":
            segments.append([])
        segments[-1].append(row)
    return segments


def _start(segment: list[Row], progress_t: float) -> Start:
    row = segment[0]
    end_rows = [r for r in segment if r["event"] in ("stop", "requeue")]
    times = [t for r in segment if (t := finite_or_nan(r.get("t"))) == t] or [progress_t]
    last_time = times[-1]
    stop_time = finite_or_nan(next((r for r in end_rows if r["event"] == "stop"), {}).get("t"))
    cause = next((r.get("cause") for r in end_rows if r["event"] == "requeue"), None)
    return Start(
        start_time=times[0],
        end_time=stop_time if stop_time == stop_time else last_time if end_rows else max(last_time, progress_t),
        step=_count(row, "step", 0),
        epoch=_count(row, "epoch", 0),
        ranks=_count(row, "world_size", 1),
        nodes=_count(row, "nodes", 1),
        device=str(row.get("device") or "cpu"),
        device_name=str(row.get("device_name") or row.get("device") or ""),
        threads=_count(row, "threads", 1),
        hostname=str(row.get("hostname") or ""),
        end_cause=str(cause or (end_rows[-1].get("reason") or "failed" if end_rows else "")),
    )


def _count(row: Row, key: str, minimum: int) -> int:
    value = row.get(key)
    return max(value, minimum) if isinstance(value, int) and value <= MAX_COUNT else minimum


def _state(segment: list[Row], starts: tuple[Start, ...]) -> tuple[str, str]:
    """Return the run's state by the rows since its last start, and the reason for it."""
    end_rows = [row for row in segment if row["event"] in ("stop", "requeue")]
    final = any(row["event"] == "final" for row in segment)
    if any(row.get("reason") == "finished" for row in end_rows) or (final and not end_rows):
        return "finished", ""  # a failure after training has finished does not make the run unfinished
    if end_rows and end_rows[-1]["event"] == "requeue":
        return "waiting", str(end_rows[-1].get("cause") or "")
    if end_rows:
        state = "interrupted" if end_rows[-1].get("reason") == "interrupted" else "failed"
        return state, str(end_rows[-1].get("message") or "")
    if not starts:
        return "not started", ""
    if time.time() - starts[-1].end_time < ACTIVE_WITHIN_S:
        return "running", ""
    return "silent", f"no sign of life since {_date(starts[-1].end_time)}"


def _date(t: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(t))
    except (ValueError, OverflowError, OSError):  # not a valid date
        return f"{t:g} s"


def _series(epochs: list[Row], starts: tuple[Start, ...]) -> dict[str, np.ndarray]:
    names = {"epoch": 0, "t": 0} | dict.fromkeys(key for row in epochs for key in row if key != "event")
    table = {name: _column([row.get(name) for row in epochs]) for name in names}
    measured = {name: values for name, values in table.items() if name in ("epoch", "t") or np.isfinite(values).any()}
    for name, width in (("gpu_hours", "gpus"), ("core_hours", "cores")):
        spent = np.zeros(len(epochs))
        for start in starts:
            spent += (
                getattr(start, width)
                * np.clip(table["t"] - start.start_time, 0, start.end_time - start.start_time)
                / 3600
            )
        measured[name] = spent
    return measured


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
    """Return ``data.json``, the hash of its content, and the hash of the test split; {} and None if it is missing."""
    try:
        return _content_hashes(read_within(path.parent, path.name))
    except OSError:
        return {}, None, None


@functools.lru_cache(maxsize=64)
def _content_hashes(content: bytes) -> tuple[dict[str, Any], str | None, str | None]:
    """Hash once for all runs of a data set."""
    try:
        data = json.loads(content)
        test = data["splits"]["test"]
        pixels = sorted(test["arrays_sha256"].values()) or [test["beton_sha256"]]  # arrays: by content, not by layout
        test_set = {"files": pixels, "samples": test["samples"], "classes": data["classes"], "size": data["image_size"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}, None, None
    contents = {key: value for key, value in data.items() if key not in ("name", "source", "writer")}
    return data, _sha256(contents), _sha256(test_set)


def _sha256(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
