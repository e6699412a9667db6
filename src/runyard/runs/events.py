"""The events of a journal, as typed values. A field that is missing or of a wrong type has its default.

``parse_event`` makes them of the journal's rows. ``row`` holds all that the line says, for what no program decides by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
MAX_INT = 2**63  # a larger integer counts nothing, and no float holds the largest


@dataclass(frozen=True, slots=True)
class Event:
    """An event of any kind, also of one that this version does not know.

    Attributes:
        t: Unix seconds, NaN if the line has none.
        row: The whole line.
    """

    t: float
    row: Row

    def number(self, name: str) -> float | None:
        """Return the finite number under ``name``, or None."""
        return finite_or_none(self.row, name)

    def text(self, name: str) -> str | None:
        """Return what is under ``name`` as text, or None."""
        return _text(self.row, name)


@dataclass(frozen=True, slots=True)
class StartEvent(Event):
    """The ranks have met, and the run trains on from ``step``."""

    step: int
    epoch: int
    world_size: int
    nodes: int | None
    nodelist: str
    job_id: str | None
    launcher: str
    parameters: int | None


@dataclass(frozen=True, slots=True)
class EpochEvent(Event):
    """An epoch was trained. Its metrics are in ``row``: which there are depends on the version that wrote it."""

    epoch: int
    step: int | None


@dataclass(frozen=True, slots=True)
class CheckpointEvent(Event):
    """A checkpoint was saved and verified."""

    step: int
    name: str


@dataclass(frozen=True, slots=True)
class FinalEvent(Event):
    """The final evaluation; its results are in ``row``."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a start failed, as far as it is known. ``cause`` is a name in ``runyard.known_causes``."""

    message: str | None = None
    rank: int | None = None
    node: str | None = None
    step: int | None = None
    exception: str | None = None
    cause: str | None = None
    before_first_step: bool = False

    def fields(self) -> Row:
        """Return what is known, as the journal's fields."""
        named = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in named.items() if value is not None and value is not False}


@dataclass(frozen=True, slots=True)
class StopEvent(Event):
    """A start has ended: ``reason`` is finished, interrupted or failed, and ``cause`` of the first two what asked."""

    reason: str
    message: str
    cause: str | None
    retry: bool
    user_error: bool
    given_up: bool
    failure: Failure

    @property
    def may_be_requeued(self) -> bool:
        """Whether the batch script may put the job back into the queue after this."""
        return self.reason == "interrupted" or (self.reason == "failed" and self.retry and not self.given_up)

    @property
    def is_final(self) -> bool:
        """Whether no job goes on by itself after this: finished, failed for good or given up, stopped by a person."""
        return not self.may_be_requeued or self.cause == "TERM"


@dataclass(frozen=True, slots=True)
class RequeueEvent(Event):
    """The batch script puts the job back into the queue, to go on at ``step``."""

    cause: str
    step: int
    evaluated: int
    without_node: str | None
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class ExcludeEvent(Event):
    """A node is left out from now on."""

    node: str
    why: str


@dataclass(frozen=True, slots=True)
class WarningEvent(Event):
    """Something that a person should know."""

    message: str


@dataclass(frozen=True, slots=True)
class TrackingEvent(Event):
    """Whether ``tracking.mode=auto`` sends to W&B now, by which way, and why not."""

    message: str


@dataclass(frozen=True, slots=True)
class NotifiedEvent(Event):
    """The run's end is told to people (``tracking.notify``)."""


def parse_event(row: Row) -> Event:
    """Return the event of a journal's row, which has an ``event``."""
    t = finite_or_none(row, "t")
    t = math.nan if t is None else t
    match row["event"]:
        case "start":
            return StartEvent(
                t, row, _int(row, "step") or 0, _int(row, "epoch") or 0, _int(row, "world_size") or 1,
                _int(row, "nodes"), _text(row, "nodelist") or "", _text(row, "job_id"), _text(row, "launcher") or "",
                _int(row, "parameters"),
            )  # fmt: skip
        case "epoch":
            return EpochEvent(t, row, _int(row, "epoch") or 0, _int(row, "step"))
        case "checkpoint":
            return CheckpointEvent(t, row, _int(row, "step") or 0, _text(row, "name") or "")
        case "final":
            return FinalEvent(t, row)
        case "stop":
            flags = (row.get("retry", True) is True, row.get("user_error") is True, row.get("given_up") is True)
            reason, message = _text(row, "reason") or "failed", _text(row, "message") or ""
            return StopEvent(t, row, reason, message, _text(row, "cause"), *flags, parse_failure(row))
        case "requeue":
            failure = parse_failure(row["failure"]) if isinstance(row.get("failure"), dict) else None
            cause, step, evaluated = _text(row, "cause") or "", _int(row, "step") or 0, _int(row, "evaluated") or 0
            return RequeueEvent(t, row, cause, step, evaluated, _text(row, "without_node"), failure)
        case "exclude":
            return ExcludeEvent(t, row, _text(row, "node") or "", _text(row, "why") or "")
        case "warning":
            return WarningEvent(t, row, _text(row, "message") or "")
        case "tracking":
            return TrackingEvent(t, row, _text(row, "message") or "")
        case "notified":
            return NotifiedEvent(t, row)
    return Event(t, row)


def parse_failure(fields: Row) -> Failure:
    """Return the failure that these fields of a row describe."""
    message, node, exception, cause = (_text(fields, name) for name in ("message", "node", "exception", "cause"))
    rank, step = _int(fields, "rank"), _int(fields, "step")
    return Failure(message, rank, node, step, exception, cause, fields.get("before_first_step") is True)


def finite_or_none(row: Mapping[str, object], key: str) -> float | None:
    """Return the finite number under ``key``, or None."""
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) <= MAX_INT else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def _int(row: Row, key: str) -> int | None:
    value = row.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INT else None


def _text(row: Row, key: str) -> str | None:
    value = row.get(key)
    return None if value is None else str(value)
