"""Computes what W&B gets of a run from the run's journal alone. It imports no wandb.

The n-th point of the journal is always W&B's step n: rows are only appended, and a later row changes no earlier point.
So a server that holds n points of a run lacks exactly those from the n-th on, whoever sent them and however the sender
ended, and nothing else has to be recorded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from runyard.config.schema import Config
from runyard.runs.events import EpochEvent, Event, FinalEvent, Row, StopEvent, finite_or_none
from runyard.runs.narrative import format_event
from runyard.runs.results.metrics import METRICS
from runyard.runs.state import END_STATES, JournalState, RunState

# A field that a journal lacks makes no curve.
WANDB_NAMES, RANK_METRICS, NODE_METRICS = (
    {metric.name: metric.wandb for metric in METRICS if metric.of == of and metric.wandb}
    for of in ("run", "rank", "node")
)
MAX_RANKS = 64  # with curves of their own
STEP_METRICS = ("epoch", "step", "images", "clock_s")
BEST_BY = {
    metric.wandb: max if metric.better == "higher" else min
    for metric in METRICS
    if metric.better and metric.wandb.startswith(("train/", "test/", "val/"))
}


@dataclass(frozen=True)
class Point:
    """One line of W&B's history, and what is known once it is there.

    Attributes:
        values: Numbers by W&B's names.
        summary: What W&B's summary says from here on. It is computed here because W&B's own best forgets what was
            before a restart.
        final: The ``final`` row, on the last point of a finished run.
        lines: The log's lines since the previous point.
    """

    values: dict[str, float]
    summary: Row
    final: Row | None
    lines: list[str]


@dataclass
class WandbHistory:
    """The points of the events consumed so far, and the state of the run after them.

    Attributes:
        lines: The log's lines since the last point.
        journal: The starts and how they ended.
        failures: How many of the starts failed.
    """

    config: Config
    points: list[Point] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    journal: JournalState = field(default_factory=JournalState)
    failures: int = 0
    _summary: Row = field(default_factory=dict)
    _epochs_done: int = 0

    def consume(self, events: Iterable[Event]) -> None:
        """Take in the next events of the journal."""
        for event in events:
            self._consume_event(event)

    @property
    def status(self) -> RunState:
        """How the newest start ended: finished, interrupted or failed; running while the journal has no end of it."""
        stop = self.journal.stop
        return RunState.RUNNING if stop is None else END_STATES.get(stop.reason, RunState.FAILED)

    def _consume_event(self, event: Event) -> None:
        if (line := format_event(event, self.config.epochs)) is not None:
            self.lines.append(line)
        is_first_final = self.journal.final is None
        self.journal.advance(event)
        match event:
            case StopEvent(reason="failed"):
                self.failures += 1
            case EpochEvent() if event.epoch > self._epochs_done:  # a resumed run may repeat one, with its results
                self._epochs_done = event.epoch
                self._point(event.row, self._epoch(event.row), None)
            case FinalEvent() if is_first_final:
                measured = {
                    key: event.row.get(key) for key in ("top1", "loss", "top1_best", "best_epoch", "parameters")
                }
                self._summary |= {key: value for key, value in measured.items() if value is not None}
                self._point(event.row, {"epoch": self.config.epochs}, event.row)

    def _point(self, row: Row, values: dict[str, float], final: Row | None) -> None:
        timestamp = {"_timestamp": t} if (t := finite_or_none(row, "t")) is not None else {}
        summary = {**self._summary, "restarts": max(0, len(self.journal.starts) - 1)}
        self.points.append(Point(values | timestamp, summary, final, self.lines))
        self.lines = []

    def _epoch(self, row: Row) -> dict[str, float]:
        measured = {name: value for key, name in WANDB_NAMES.items() if (value := finite_or_none(row, key)) is not None}
        axes = {axis: value for axis in STEP_METRICS if (value := finite_or_none(row, axis)) is not None}
        if "step" in axes:
            axes["images"] = axes["step"] * self.config.batch_size
        for name, better in BEST_BY.items():
            if name in measured:
                kind = "max" if better is max else "min"
                previous = self._summary.get(name, {}).get(kind, measured[name])
                self._summary[name] = {kind: better(previous, measured[name]), "last": measured[name]}
        score = measured.get("val/top1", measured.get("test/top1"))
        if score is not None and score > self._summary.get("top1_best", -1.0):
            self._summary |= {"top1_best": score, "best_epoch": int(axes["epoch"])}
        best = {"top1_best": self._summary["top1_best"]} if "top1_best" in self._summary else {}
        return axes | measured | _nodes(row) | _ranks(row) | best


def _ranks(row: Row) -> dict[str, float]:
    return {
        f"rank/{rank}/{name}": float(value)
        for key, name in RANK_METRICS.items()
        for rank, value in enumerate(row[key][:MAX_RANKS] if isinstance(row.get(key), list) else [])
        if isinstance(value, (int, float))
    }


def _nodes(row: Row) -> dict[str, float]:
    nodes = row.get("nodes")
    return {
        f"node/{node['node']}/{name}": value
        for node in (nodes if isinstance(nodes, list) else [])
        if isinstance(node, dict) and isinstance(node.get("node"), str)
        for key, name in NODE_METRICS.items()
        if (value := finite_or_none(node, key)) is not None
    }
