"""What a command costs before it does its work: wall seconds and peak memory of whole processes, medians.

SLURM's commands are those of the tests, which answer at once: what is measured of a submission is its own part.

    python benchmarks/commands.py [--repeats 7] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
RUNYARD = str(Path(sys.executable).parent / "runyard")
DATA = ["data=synthetic", "data.samples=[256,100]", "data.num_classes=4", "data.image_size=16"]
SUBMIT = [RUNYARD, "submit", "experiment=starter", "cluster=slurm"]
COMMANDS = {
    "runyard --help": [RUNYARD, "--help"],
    "runyard submit --cfg job": [RUNYARD, "submit", "--cfg", "job", "experiment=paper"],
    "runyard submit cluster=slurm --dry-run": [*SUBMIT, "--dry-run"],
    "runyard submit cluster=slurm": [*SUBMIT, *DATA, "batch_size=128"],
    "runyard submit -m cluster=slurm, 6 points": [*SUBMIT, *DATA, "batch_size=128", "-m", "seed=range(0,6)"],
    "runyard settings": [RUNYARD, "settings"],
    "runyard inspect model=paper_resnet": [RUNYARD, "inspect", "model=paper_resnet"],
    "import torch (for scale)": [sys.executable, "-c", "import torch"],
}


def cost(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident MB of one run; of the commands that it calls none is larger."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024 / 1e6


def login_node(folder: Path) -> None:
    """Go to an empty ``folder`` with small prepared data, and have SLURM's commands on PATH."""
    sys.path.insert(0, str(ROOT))
    from tests.support.fake_slurm import FakeSlurm

    os.environ["PATH"] = FakeSlurm(folder / "slurm").path
    os.chdir(folder)
    subprocess.run([RUNYARD, "prepare", *DATA], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        login_node(Path(folder))
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
