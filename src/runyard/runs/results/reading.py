"""Reads a run's directory into a ``RunHistory``.

It is lenient where a run's own program is strict: a run of an older or newer schema version is compared by the settings
it has, and a damaged journal line loses only that line.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from runyard.errors import UserError
from runyard.files import file_fix, read_within
from runyard.runs import journal
from runyard.runs.events import Event, RequeueEvent, Row, StartEvent, StopEvent, parse_event
from runyard.runs.identity import separates_runs
from runyard.runs.journal import JournalReader, decode_line
from runyard.runs.record import RUN_HINT, read_record
from runyard.runs.results.history import FlatSettings, RunHistory, Start, finite_or_nan
from runyard.runs.state import JournalState, state_on_disk
from runyard.runs.summary import read_progress

MAX_COUNT = 2**53  # more than any valid epoch, step or rank; larger integers are not exact as floats
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, if libyaml is installed
MAX_FAST_BYTES = 1 << 14  # deep nesting, which takes many bytes, crashes libyaml, and raises RecursionError in Python


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
        events, broken_lines, last_line_truncated = _read(directory / "metrics.jsonl")
    except OSError as error:
        raise UserError(f"{directory}/metrics.jsonl: cannot read it ({error.strerror})", file_fix(error)) from None
    status = JournalState.of(events)
    segments = _split_by_start(events)
    progress_t = read_progress(directory).get("t", 0.0)
    starts = tuple(_start(s, progress_t if s is segments[-1] else 0.0) for s in segments[1:])
    state, message = state_on_disk(
        status, pruned=record.get("pruned") is True, last_sign=starts[-1].end_time if starts else 0.0
    )
    final = status.final.row if status.final is not None else {}
    counts = [final.get("parameters"), *(start.parameters for start in status.starts)]
    parameters = next((count for count in counts if isinstance(count, int)), None)
    data, data_sha256, test_sha256 = _data(directory / "data.json")
    classes = final.get("classes") or data.get("classes")
    tags = settings.get("tracking.tags")
    rows = journal.epochs(event.row for event in events)
    return RunHistory(
        id=record["id"],
        name=str(settings.get("name", record["name"])),
        directory=directory,
        settings=settings,
        settings_sha256=_sha256(
            {k: v for k, v in settings.items() if k != "seed" and v is not None and separates_runs(k)}
        ),
        edited=record.get("config_sha256") not in (None, config_sha256),
        code_sha256=str(record.get("code_sha256", "")),
        tags=tuple(map(str, tags)) if isinstance(tags, list) else (),
        sweep=record["sweep"],
        created=record["created"],
        state=state,
        message=message,
        series=_series([row for row in rows if 1 <= row["epoch"] <= MAX_COUNT], starts),
        starts=starts,
        final=final,
        parameters=parameters,
        broken_lines=broken_lines,
        last_line_truncated=last_line_truncated,
        data_name=str(settings.get("data.name", data.get("name", ""))),
        data_sha256=data_sha256,
        test_sha256=test_sha256,
        classes=tuple(map(str, classes)) if isinstance(classes, list) else (),
    )


def flatten(values: Mapping[str, object], path: str = "") -> FlatSettings:
    """Return nested settings by dotted name."""
    flat: FlatSettings = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = value
    return flat


def _config(path: Path) -> tuple[dict[str, object], str]:
    """Return the configuration and the file's sha256."""
    try:
        content = read_within(path.parent, path.name)
        values = yaml.load(content, LOADER if len(content) <= MAX_FAST_BYTES else yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror})", file_fix(error)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({(str(error).splitlines() or ['?'])[0]})", RUN_HINT) from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged (no mapping of names to values)", RUN_HINT)
    return values, hashlib.sha256(content).hexdigest()


def _read(path: Path) -> tuple[list[Event], tuple[int, ...], bool]:
    """Return the events, the numbers of the lines without one, and whether the last line is one of them with no end."""
    events: list[Event] = []
    damaged: list[int] = []
    truncated = False
    for number, line in enumerate(JournalReader(path).new_lines(whole=True), 1):
        if (row := decode_line(line)) is not None:
            events.append(parse_event(row))
        elif not line.isspace():
            damaged.append(number)
            truncated = not line.endswith(b"\n")
    return events, tuple(damaged), truncated


def _split_by_start(events: Iterable[Event]) -> list[list[Event]]:
    """Split the events before each start. The first segment has the events before any start, often none."""
    segments: list[list[Event]] = [[]]
    for event in events:
        if isinstance(event, StartEvent):
            segments.append([])
        segments[-1].append(event)
    return segments


def _start(segment: list[Event], progress_t: float) -> Start:
    row = segment[0].row
    stops = [event for event in segment if isinstance(event, StopEvent)]
    requeue = next((event for event in segment if isinstance(event, RequeueEvent)), None)
    times = [event.t for event in segment if event.t == event.t] or [progress_t]
    last_time = times[-1] if stops or requeue else max(times[-1], progress_t)
    return Start(
        start_time=times[0],
        end_time=stops[0].t if stops and stops[0].t == stops[0].t else last_time,
        step=_count(row, "step", 0),
        epoch=_count(row, "epoch", 0),
        ranks=_count(row, "world_size", 1),
        nodes=_count(row, "nodes", 1),
        device=str(row.get("device") or "cpu"),
        device_name=str(row.get("device_name") or row.get("device") or ""),
        threads=_count(row, "threads", 1),
        hostname=str(row.get("hostname") or ""),
        end_cause=requeue.cause if requeue and requeue.cause else stops[-1].reason if stops else "",
    )


def _count(row: Row, key: str, minimum: int) -> int:
    value = row.get(key)
    return max(value, minimum) if isinstance(value, int) and value <= MAX_COUNT else minimum


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


def _column(values: list[object]) -> np.ndarray:
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


def _sha256(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
