"""What logging costs a training: the time it spends in the recorder, as a part of the time it trains.

    python benchmarks/tracking.py [model.widths=[16,32] SETTING=VALUE ...] [--modes none,offline] [--json]

Trains experiment=starter on made images. ``event`` is one journal line, on disk when it returns; ``progress`` the file
that is replaced twice a second and asked for at each step, so per step; ``close`` waits for W&B once, at the end.
``share`` is the part of the training clock that events and progress took, ``cpu_share`` their part of the processor
time, which other work on the machine does not change. W&B's own work is done in a thread and a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from runyard.config.compose import compose
from runyard.data.prepare.pipeline import prepare_dataset
from runyard.runs import journal
from runyard.runs.run import Run
from runyard.tracking.recorder import Recorder
from runyard.training.trainer import train

# small, so that a step is short beside what is logged of it: a larger network's share is smaller
MADE = ["data=synthetic", "data.samples=[2048,256]", "data.image_size=16", "batch_size=128", "epochs=6"]


class Timed:
    """Stands in the recorder's methods' place, and notes how long each call took."""

    def __init__(self, name: str) -> None:
        self.seconds: list[float] = []
        self.cpu_s = 0.0
        self._method: Callable[..., Any] = getattr(Recorder, name)
        setattr(Recorder, name, lambda *args, **kwargs: self(*args, **kwargs))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        began, cpu = time.perf_counter(), time.thread_time()
        try:
            return self._method(*args, **kwargs)
        finally:
            self.seconds.append(time.perf_counter() - began)
            self.cpu_s += time.thread_time() - cpu


def measure(mode: str, overrides: list[str], folder: str, timed: dict[str, Timed]) -> dict[str, Any]:
    config = compose([*overrides, f"tracking.mode={mode}", f"data.root={folder}", f"runs_dir={folder}/runs"]).config
    prepare_dataset(config.data, progress=False)
    for each in timed.values():
        each.seconds.clear()
        each.cpu_s = 0.0
    run = Run.create(config, [])
    cpu = time.process_time()
    train(run)
    cpu = time.process_time() - cpu
    epochs = journal.epochs(journal.read_journal(run.journal_path)[0])
    steps, clock_s = epochs[-1]["step"], epochs[-1]["clock_s"]
    spent = {name: sum(each.seconds) for name, each in timed.items()}
    return {
        "tracking": mode,
        "step_ms": 1e3 * sum(row["train_s"] for row in epochs) / steps,
        "images_per_s": statistics.median(row["images_per_s"] for row in epochs[1:]),
        "event_ms": 1e3 * statistics.median(timed["event"].seconds),
        "progress_us": 1e6 * spent["progress"] / steps,
        "open_ms": 1e3 * spent["open_wandb"],
        "close_ms": 1e3 * spent["close"],
        "share_pct": 100 * (spent["event"] + spent["progress"]) / clock_s,
        "cpu_share_pct": 100 * (timed["event"].cpu_s + timed["progress"].cpu_s) / cpu,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--modes", default="none,offline", help="in this order; twice shows the noise")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    timed = {name: Timed(name) for name in ("event", "progress", "open_wandb", "close")}
    with tempfile.TemporaryDirectory() as folder:
        settings = ["experiment=starter", *MADE, *args.overrides]
        rows = [measure(mode, settings, folder, timed) for mode in args.modes.split(",")]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(*rows[0], title=" ".join(["experiment=starter", *args.overrides]))
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
