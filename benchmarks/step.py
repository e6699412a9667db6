"""How fast is a training step? The network of a recipe by torch.compile mode and batch, data already on the device.

    python benchmarks/step.py [experiment=paper] [--modes none,reduce-overhead] [--batches 128,512] [--json]

Needs ``runyard prepare data=cifar10``. ``host`` is the time the host took to issue a step, ``step`` the time it took in
all: where they are equal the host is the limit, not the device. The rate of loader=resident alone stands beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from runyard.config.compose import compose
from runyard.config.schema import Config
from runyard.data import manifest
from runyard.data.loading import loaders
from runyard.training.distributed import process_group
from runyard.training.train_state import TrainState

WARM_UP_STEPS, STEPS, REPEATS = 8, 20, 5


def measure(config: Config) -> dict[str, Any]:
    """Median milliseconds per step over the repeats, images/s, and seconds of warm-up."""
    rank_info = process_group.from_environment({})
    folder = manifest.dataset_dir(config.data)
    data = manifest.load_manifest(folder)
    loader = loaders.train_loader(config, data, folder, rank=0, world_size=1, device=rank_info.device)
    train_state = TrainState(config, data, rank_info, loader.steps)
    train_state.wrap_ddp()
    began = time.perf_counter()
    if config.compile != "none":
        train_state.warm_up(data.image_size)
    epoch = loader.epoch(0)
    batches = [next(epoch) for _ in range(WARM_UP_STEPS)]
    for batch in batches:
        train_state.train_step(batch)
    _synchronize(rank_info.device)
    warm_up_s = time.perf_counter() - began
    host_ms, step_ms = [], []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for i in range(STEPS):
            train_state.train_step(batches[i % len(batches)])
        host_ms.append(1e3 * (time.perf_counter() - began) / STEPS)
        _synchronize(rank_info.device)
        step_ms.append(1e3 * (time.perf_counter() - began) / STEPS)
    began, seen = time.perf_counter(), 0
    for step in loader.epoch(1):
        seen += len(step[0].labels)
        if time.perf_counter() - began > 5:
            break
    _synchronize(rank_info.device)
    loader_rate = seen / (time.perf_counter() - began)
    loader.close()
    step = statistics.median(step_ms)
    return {"compile": config.compile, "batch_size": config.batch_size, "host_ms": statistics.median(host_ms),
            "step_ms": step, "images_per_s": 1e3 * config.batch_size / step, "loader_images_per_s": loader_rate,
            "warm_up_s": warm_up_s}  # fmt: skip


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", default=["experiment=paper"])
    parser.add_argument("--modes", default="none")
    parser.add_argument("--batches", default="128")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    base = compose(["loader=resident", *args.overrides]).config
    rows = []
    for mode in args.modes.split(","):
        for batch_size in map(int, args.batches.split(",")):
            torch._dynamo.reset()
            rows.append(measure(dataclasses.replace(base, compile=mode, batch_size=batch_size)))  # type: ignore[arg-type]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(*rows[0], title=f"{base.model.name}, {base.precision}")
    for row in rows:
        table.add_row(*(f"{v:,.1f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
