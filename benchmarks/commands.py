"""What a command costs before it does its work: wall seconds and peak memory of whole processes, medians.

    python benchmarks/commands.py [--repeats 7] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

RUNYARD = str(Path(sys.executable).parent / "runyard")
COMMANDS = {
    "runyard --help": [RUNYARD, "--help"],
    "runyard submit --cfg job": [RUNYARD, "submit", "--cfg", "job", "experiment=paper"],
    "runyard settings": [RUNYARD, "settings"],
    "runyard inspect model=paper_resnet": [RUNYARD, "inspect", "model=paper_resnet"],
    "import torch (for scale)": [sys.executable, "-c", "import torch"],
}


def cost(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident MB of one run."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for name, command in COMMANDS.items():
        cost(command)
        seconds, memory = zip(*(cost(command) for _ in range(args.repeats)), strict=True)
        rows.append({"command": name, "median_s": statistics.median(seconds), "peak_mb": statistics.median(memory)})
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("command", "wall, s", "peak memory, MB", title=f"medians of {args.repeats}")
    for row in rows:
        table.add_row(str(row["command"]), f"{row['median_s']:.2f}", f"{row['peak_mb']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
