"""Formats the journal's events as lines of text for the log and the terminal."""

from __future__ import annotations

from runyard.runs.events import (
    EpochEvent,
    Event,
    ExcludeEvent,
    FinalEvent,
    RequeueEvent,
    StartEvent,
    TrackingEvent,
    WarningEvent,
)

STRAGGLER_RATIO = 1.5  # times the median


def format_event(event: Event, epochs: int) -> str | None:
    """Return one line for an event worth showing, else None. ``epochs`` is the run's total number of epochs."""
    match event:
        case StartEvent():
            action = f"resuming at step {event.step}" if event.text("resumed_from") else "training"
            ranks = f"{event.world_size} rank{'s' * (event.world_size > 1)}"
            network = f"{name}, " if (name := event.text("network")) else ""  # until 0.1.0 it was not written
            network += f"{_formatted(event, 'parameters', ',')} parameters, {event.text('precision')}"
            return f"{action}: {network}, {ranks} on {event.text('device_name')}"
        case EpochEvent():
            measured = {name: event.number(f"{name}_top1") for name in ("val", "test")}
            top1 = "".join(f"{name} {value:.2%}  " for name, value in measured.items() if value is not None)
            test = "" if event.number("test_loss") is None else f", {_formatted(event, 'test_loss', '.4f')} test"
            return (
                f"epoch {event.epoch:>{len(str(epochs))}}/{epochs}  {top1}"
                f"loss {_formatted(event, 'train_loss', '.4f')} train{test}  lr {_formatted(event, 'lr', '.1e')}  "
                f"{_formatted(event, 'images_per_s', ',.0f')} images/s, "
                f"{_formatted(event, 'data_wait_pct', '.0f')} % waiting for data  "
                f"{_duration(event)}{f'  {slow}' if (slow := straggler_text(event)) else ''}"
            )
        case FinalEvent():
            best = f"best {_formatted(event, 'top1_best', '.2%')} in epoch {_formatted(event, 'best_epoch', '')}"
            return f"final test top-1 {_formatted(event, 'top1', '.2%')} ({best}), trained in {_duration(event)}"
        case RequeueEvent():
            return f"{event.cause}: back into the queue, to go on at step {event.step}"
        case ExcludeEvent():
            return f"{event.node} is left out from now on: {event.why}"
        case WarningEvent():
            return f"warning: {event.message}"
        case TrackingEvent():
            return event.message
    return None


def _formatted(event: Event, name: str, spec: str) -> str:
    value = event.number(name)
    return "–" if value is None else format(value, spec)


def _duration(event: Event) -> str:
    seconds = event.number("clock_s")
    return "–" if seconds is None else format_duration(seconds)


def straggler_text(epoch: EpochEvent) -> str | None:
    """Describe the slowest rank of an epoch if it takes ``STRAGGLER_RATIO`` times the median or more."""
    ratio, rank, node = epoch.number("slowest_to_median"), epoch.text("slowest_rank"), epoch.text("slowest_node")
    if ratio is None or ratio < STRAGGLER_RATIO:
        return None
    return f"rank {rank} on {node} takes {ratio:.1f}x the median rank's time"


def format_duration(seconds: float) -> str:
    """Return seconds as m:ss, or as h:mm:ss from one hour on."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
