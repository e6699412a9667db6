"""Row 16: epoch after epoch, broken off early or not, a loader keeps no thread, handle or memory."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path
from typing import Any

from tests.torture.ground import discard
from tests.torture.promise import Attacker, Promise, hold

LOADERS = ("resident", "ffcv", "torch")
EPOCHS = {"resident": 100, "ffcv": 100, "torch": 40}  # of an attack
AHEAD = {"resident": 0, "ffcv": 0, "torch": 16}  # handles of tensors that worker processes have made ahead
WORKERS = 2  # threads of a pool, which it starts when it first needs them
MOST_MB = 24  # that memory may grow by after a first part: caches and the allocator settle there


def strike(a: Attacker, *, leaky: bool = False) -> str:
    """A hundred epochs in a process, most of them broken off somewhere."""
    name = LOADERS[a.number % len(LOADERS)]
    run = a.ground.run(f"loader={name}", f"workers={WORKERS}")
    out = run.path / "seen.json"
    call = ("tests.torture.leaks:iterate", str(run.path), EPOCHS[name], str(a.rng.random()), str(out), leaky)
    code = a.ground.zygote.wait(a.ground.zygote.start(run.path / "slurm" / "said.log", call))
    hold(code == 0, f"{name}: {(run.path / 'slurm' / 'said.log').read_text()[-300:]}")
    settled, last, after = json.loads(out.read_text())
    for what, slack in (("threads", WORKERS), ("handles", AHEAD[name]), ("children", 0), ("memory", MOST_MB)):
        grown = last[what] - settled[what]
        hold(grown <= slack, f"{name}: {grown} more {what} after {EPOCHS[name]} epochs")
    hold(after["children"] == 0, f"{name}: {after['children']} processes stay when it is closed")
    discard(run)
    return name


def iterate(run_dir: str, epochs: int, seed: str, out: str, leaky: bool) -> None:
    """In a process: use the loader, and write down what there is of each after a tenth, at the end, and once closed."""
    import torch

    from runyard.data import manifest
    from runyard.data.loading import loaders
    from runyard.runs.run import Run

    torch.set_num_threads(2)
    rng, config, kept, seen = random.Random(seed), Run.open(run_dir).config, [], []
    folder = manifest.dataset_dir(config.data)
    shard: dict[str, Any] = {"rank": 0, "world_size": 1, "device": torch.device("cpu")}
    loader = loaders.train_loader(config, manifest.load_manifest(folder), folder, **shard)
    for epoch in range(epochs):
        steps = rng.randint(1, loader.steps)
        batches = loader.epoch(epoch, rng.randrange(loader.steps) if rng.random() < 0.3 else 0)
        for step, _ in enumerate(batches):
            if step + 1 == steps:
                break
        if leaky:
            file = open(out + str(epoch), "w")  # noqa: SIM115  kept open on purpose
            kept.append((file, threading.Thread(target=threading.Event().wait, daemon=True)))
            kept[-1][1].start()
        if epoch + 1 in (max(2, epochs // 10), epochs):
            batches.close()
            seen.append(now())
    loader.close()
    seen.append(now())
    Path(out).write_text(json.dumps(seen))


def now() -> dict[str, int]:
    """Of this process; the server that forks a loader's workers, which serves till the end, is no leak."""
    import gc

    gc.collect()
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    servers = [c for c in children if any(w in _words(c) for w in ("forkserver", "resource_tracker"))]
    below = [c for s in servers for c in Path(f"/proc/{s}/task/{s}/children").read_text().split()]
    return {
        "threads": int(status["Threads"]),
        "handles": len(os.listdir("/proc/self/fd")),
        "children": len(children) - len(servers) + len(below),
        "memory": int(status["VmRSS"].split()[0]) // 1024,
    }


def _words(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def keeping_everything(a: Attacker) -> str:
    return strike(Attacker(a.ground, a.rng, 0), leaky=True)


PROMISE = Promise(
    number=16,
    promise="Epoch after epoch, broken off early or not, a loader keeps no thread, handle, process or memory.",
    attack="Up to 100 epochs in one process, begun in mid-epoch and broken off at random, with each of the three "
    "loaders; what /proc shows after a tenth of them is compared with the end.",
    at_least=24,
    short=2,
    strike=strike,
    control=keeping_everything,
    switched_off="each epoch keeps a thread and a file",
)
