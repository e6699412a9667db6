"""The states of a run, and which of them its journal shows: the one state machine that all programs read runs by."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from runyard.runs.events import Event, FinalEvent, RequeueEvent, StartEvent, StopEvent

ALIVE_WITHIN_S = 600.0  # a run without an end that wrote something within this time counts as running


class RunState(enum.StrEnum):
    """What a run is doing, or how it ended."""

    WAITING = "waiting"  # in the queue, or not submitted
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"  # saved, may be resumed
    FAILED = "failed"
    KILLED = "killed"  # ended without recording how
    CANCELLED = "cancelled"  # before it recorded an end
    PRUNED = "pruned"  # its search stopped it
    UNKNOWN = "unknown"  # SLURM did not answer, or was not asked


ACTIVE_STATES = (RunState.WAITING, RunState.STARTING, RunState.RUNNING, RunState.STOPPING)
END_STATES = {"finished": RunState.FINISHED, "interrupted": RunState.INTERRUPTED}  # by a stop event's reason


@dataclass
class JournalState:
    """What a journal's events say so far. What happens after a start has finished does not make it unfinished.

    Attributes:
        state: WAITING before the first start and after a requeue; RUNNING from a start to its end.
        starts: The starts in order; all but the first are restarts.
        stops: How each start ended, or None as long as it has recorded no end.
        last: The newest event that changed the state, without ``final``.
        final: The newest final evaluation.
    """

    state: RunState = RunState.WAITING
    starts: list[StartEvent] = field(default_factory=list)
    stops: list[StopEvent | None] = field(default_factory=list)
    last: StartEvent | StopEvent | RequeueEvent | None = None
    final: FinalEvent | None = None

    def advance(self, event: Event) -> None:
        """Take in the next event."""
        match event:
            case StartEvent():
                self.starts.append(event)
                self.stops.append(None)
                self.state, self.last = RunState.RUNNING, event
            case FinalEvent():
                self.final = event
                if self.state is RunState.RUNNING:
                    self.state = RunState.FINISHED
            case StopEvent() if not self._has_finished:
                self.state, self.last = END_STATES.get(event.reason, RunState.FAILED), event
                if self.stops:
                    self.stops[-1] = event
            case RequeueEvent() if not self._has_finished:
                self.state, self.last = RunState.WAITING, event

    @classmethod
    def of(cls, events: Iterable[Event]) -> JournalState:
        """Return the state after all of ``events``."""
        state = cls()
        for event in events:
            state.advance(event)
        return state

    @property
    def _has_finished(self) -> bool:
        return isinstance(self.last, StopEvent) and self.last.reason == "finished"

    @property
    def stop(self) -> StopEvent | None:
        """How the newest start ended; None while it runs, or if it recorded no end."""
        return self.stops[-1] if self.stops else self.last if isinstance(self.last, StopEvent) else None

    @property
    def message(self) -> str:
        """The reason for the state that the journal gives; "" if there is none."""
        if isinstance(self.last, RequeueEvent):
            return self.last.cause
        return self.last.message if isinstance(self.last, StopEvent) else ""


def state_on_disk(journal: JournalState, *, pruned: bool, last_sign: float) -> tuple[RunState, str]:
    """Return the state of a run and the reason for it, as far as its directory shows that without asking SLURM.

    Args:
        pruned: Whether its record says that its search stopped it.
        last_sign: When it last wrote something, unix seconds.
    """
    state, message = journal.state, journal.message
    if state is RunState.WAITING and journal.last is None:
        message = "not started"
    elif state is RunState.RUNNING and not time.time() - last_sign < ALIVE_WITHIN_S:
        state, message = RunState.UNKNOWN, f"no sign of life since {_date(last_sign)}: `runyard status` asks SLURM"
    elif state is RunState.FINISHED:
        message = ""
    if pruned and state in (RunState.INTERRUPTED, RunState.UNKNOWN):
        return RunState.PRUNED, "its search stopped it: below the median of the others"
    return state, message


def _date(t: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(t))
    except (ValueError, OverflowError, OSError):  # not a valid date
        return f"{t:g} s"
