"""Row 15: a thousand runs in one folder, and a journal of a million lines, are read in little memory and in seconds.

The bounds are generous multiples of what is promised on an idle machine: this tells a quadratic algorithm, not a busy
neighbour. What the commands take on an idle machine stands in docs/benchmarks.md.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from tests.support.fake_runs import fabricate
from tests.support.settings import PATIENCE_S
from tests.torture.ground import ROOT, Ground
from tests.torture.promise import Attacker, Promise, hold

RUNS, LINES = 1000, 1_000_000
# CPU seconds and MB of memory at most: several times what is seen, so that only another order of growth is told.
BOUNDS = {"status": (15, 400), "compare": (50, 900), "journal": (30, 2500)}


@functools.cache
def many(ground: Ground) -> Path:
    """A folder of a thousand runs of thirty epochs."""
    folder, config = ground.scratch(), ground.config()
    for n in range(RUNS):
        fabricate(folder, config, f"20260901-{n:06d}-many-ab12", settings={"seed": n})
    return folder


@functools.cache
def long(ground: Ground) -> Path:
    """A run whose journal has a million lines."""
    folder = ground.scratch()
    run = fabricate(folder, ground.config(), "20260901-000000-long-ab12")
    line = json.dumps({"event": "checkpoint", "t": 1_790_000_000.0, "step": 7, "name": "step_00000007", "seconds": 0.1})
    with open(run / "metrics.jsonl", "a") as file:
        for _ in range(LINES // 1000):
            file.write((line + "\n") * 1000)
    return folder


def strike(a: Attacker) -> str:
    name = ("status", "compare", "journal")[a.number % 3]
    folder = long(a.ground) if name == "journal" else many(a.ground)
    verb = "compare" if name == "compare" else "status"
    cpu_s, peak_mb = measured(verb, "--all", "--runs-dir", str(folder), "--json")
    most_s, most_mb = BOUNDS[name]
    hold(cpu_s <= most_s, f"{name}: {cpu_s:.1f} s of CPU, expected {most_s} at most")
    hold(peak_mb <= most_mb, f"{name}: {peak_mb:.0f} MB, expected {most_mb} at most")
    return name


# VmHWM, since ru_maxrss would count the memory of whoever forked it, too.
MEASURE = """
import re, resource, sys
from runyard.cli.main import main
code, used = main(sys.argv[1:]), resource.getrusage(resource.RUSAGE_SELF)
peak = re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read()).group(1)
print(used.ru_utime + used.ru_stime, int(peak) / 1024, file=sys.stderr)
sys.exit(code)
"""


def measured(*words: str) -> tuple[float, float]:
    """CPU seconds, which a busy neighbour does not lengthen much, and peak MB of a command."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *words], cwd=ROOT, text=True, timeout=PATIENCE_S,
                          env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
    hold(done.returncode == 0, f"{words[0]} ended with {done.returncode}: {done.stderr[-300:]}")
    cpu_s, peak_mb = map(float, done.stderr.splitlines()[-1].split())
    return cpu_s, peak_mb


def quadratic(a: Attacker) -> str:
    """A reading that takes the square of its lines, of a journal that has a hundredth of them."""
    began = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    rows: tuple[int, ...] = ()
    until = time.monotonic() + PATIENCE_S
    for n in range(LINES // 100):
        rows = (*rows, n)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_utime - began
        if n % 1000 == 0 and (used * (LINES / max(n, 1)) ** 2 > BOUNDS["journal"][0] * 100 or time.monotonic() > until):
            hold(False, f"{n} lines took {used:.2f} s: a million would take a hundred times the bound")
    hold(False, "its whole journal would take longer than the bound")
    return ""


PROMISE = Promise(
    number=15,
    promise="A thousand runs in one folder, and a journal of a million lines, are read in seconds, in bounded memory.",
    attack="`status` and `compare` over 1,000 runs of 30 epochs; `status` of a run with a journal of 1,000,000 lines.",
    at_least=6,
    short=1,
    strike=strike,
    control=quadratic,
    switched_off="each line costs what all before it cost",
)
