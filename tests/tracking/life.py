"""A short life of a run, told to its recorder as the training loop tells it, or written straight into its journal."""

from __future__ import annotations

from typing import Any

from runyard.runs.journal import Journal
from runyard.runs.run import Run
from runyard.tracking.recorder import Recorder

KEY = "5ec7e75ec7e75ec7e75ec7e75ec7e75ec7e75ec7"
START = {"step": 0, "epoch": 0, "resumed_from": None, "world_size": 2, "parameters": 10, "precision": "bf16",
         "device_name": "abacus", "hostname": "node1"}  # fmt: skip
FINAL = {"split": "test", "top1": 0.5, "loss": 1.4, "top1_best": 0.8, "best_epoch": 2, "confusion": [[3, 1], [2, 4]],
         "classes": ["cat", "dog"], "clock_s": 1.1, "parameters": 10}  # fmt: skip
TOP1 = [0.3, 0.8, 0.5, 0.6]  # the best is not the last, and after a restart after epoch 2 it is not seen again


def epoch(number: int) -> dict[str, Any]:
    """The fields of an ``epoch`` row, the numbers telling epochs apart."""
    return {"epoch": number, "step": 8 * number, "train_loss": 2.0 / number, "train_top1": 0.4,
            "test_loss": 1.0 / number, "test_top1": TOP1[(number - 1) % 4], "val_loss": None, "val_top1": None,
            "lr": 0.1, "images_per_s": 100.0, "data_wait_pct": 1.0, "train_s": 1.0, "eval_s": 0.1,
            "peak_memory_mb": 300.0, "clock_s": 1.5 * number}  # fmt: skip


Event = tuple[str, dict[str, Any]]


def begin(resumed_after: int = 0) -> Event:
    step = 8 * resumed_after
    since = f"step_{step:08d}" if step else None
    return ("start", START | {"step": step, "epoch": resumed_after, "resumed_from": since})


def epochs(first: int, last: int) -> list[Event]:
    return [("epoch", epoch(number)) for number in range(first, last + 1)]


FINISHED: list[Event] = [("final", FINAL), ("stop", {"reason": "finished", "message": "", "cause": None})]
INTERRUPTED: Event = ("stop", {"reason": "interrupted", "message": "", "cause": "time limit"})
FAILED: Event = (
    "stop",
    {
        "reason": "failed",
        "message": "the loss is not a finite number at step 9",
        "cause": None,
        "exception": "DivergenceError",
    },
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
