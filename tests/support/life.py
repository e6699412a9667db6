"""A short life of a run, told to its recorder as the training loop tells it, or written straight into its journal."""

from __future__ import annotations

from typing import Any

from runyard.runs.journal import Journal
from runyard.runs.run import Run
from runyard.tracking.recorder import Recorder
from tests.support import fake_runs

KEY = "5ec7e75ec7e75ec7e75ec7e75ec7e75ec7e75ec7"
TOP1 = [0.3, 0.8, 0.5, 0.6]  # the best is not the last, and after a restart after epoch 2 it is not seen again
STEPS = 8  # an epoch
Event = tuple[str, dict[str, Any]]


def event(row: fake_runs.Row) -> Event:
    return row.pop("event"), row


def epoch(number: int) -> dict[str, Any]:
    """The fields of an ``epoch`` row, the numbers telling epochs apart."""
    return event(fake_runs.epoch(number, step=STEPS * number, test_top1=TOP1[(number - 1) % 4]))[1]


def begin(resumed_after: int = 0) -> Event:
    """On a machine of its own kind: no GPU, a small network."""
    machine = {"device_name": "abacus", "hostname": "node1", "parameters": 10, "epoch": resumed_after}
    return event(fake_runs.start(STEPS * resumed_after, **machine))


def epochs(first: int, last: int) -> list[Event]:
    return [("epoch", epoch(number)) for number in range(first, last + 1)]


FINISHED: list[Event] = [
    event(fake_runs.final(0.5, 2, loss=1.4, top1_best=0.8, confusion=[[3, 1], [2, 4]], classes=["cat", "dog"],
                          clock_s=1.1, parameters=10)),
    event(fake_runs.stop("finished")),
]  # fmt: skip
INTERRUPTED: Event = event(fake_runs.stop("interrupted", cause="time limit"))
FAILED: Event = event(
    fake_runs.stop("failed", message="the loss is not a finite number at step 9", exception="DivergenceError")
)


def write(run: Run, *events: Event) -> None:
    """As a run leaves its journal that nobody copied."""
    journal = Journal(run.journal_path)
    for event, fields in events:
        journal.write(event, **fields)


def live(run: Run, *events: Event) -> None:
    """As the training tells it, from a start to the end of the process; the first event is a start."""
    recorder = Recorder(run, active=True)
    for event, fields in events:
        recorder.log_event(event, **fields)
        if event == "start":
            recorder.open_wandb(fields)
    recorder.close(failed=events[-1][1].get("reason") == "failed")
