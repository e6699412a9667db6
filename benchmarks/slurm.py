"""What a SLURM of one's own costs, a submission to it, and a killed rank until the next step of training.

    python benchmarks/slurm.py [--repeats 5] [--json]

Three nodes of two fake GPUs each. Submission and interruption are those of the tests' small run, on a cluster with
accounting: the last rank is killed as soon as an epoch is learned. Medians; ranks of one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from benchmarks.commands import DATA
from runyard.cluster.rehearsal.rehearse import tasks_of
from runyard.cluster.rehearsal.sandbox import SlurmSandbox
from runyard.runs import journal
from runyard.runs.run import Run

ROOT = Path(__file__).resolve().parents[1]
RUNYARD = (sys.executable, "-m", "runyard")
SETTINGS = ("experiment=null", *DATA, "model=starter", "model.widths=[16,32]", "loader=resident", "tracking=none",
            "epochs=16", "batch_size=32", "checkpoint.every_s=0.2", "cluster=rehearsal", "cluster.nodes=2")  # fmt: skip
PATIENCE_S = 120
Row = dict[str, object]


def up_and_down(repeats: int) -> list[Row]:
    rows: list[Row] = []
    for accounting in (False, True):
        ups, downs = [], []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as place:
                began = time.perf_counter()
                with SlurmSandbox(Path(place, "lab"), nodes=3, accounting=accounting):
                    ups.append(time.perf_counter() - began)
                    began = time.perf_counter()
                downs.append(time.perf_counter() - began)
        which = "slurmdbd and MariaDB, slurmctld, three slurmds" if accounting else "slurmctld and three slurmds"
        rows += [{"what": f"{which}: up, s", "median": statistics.median(ups)},
                 {"what": f"{which}: down, s", "median": statistics.median(downs)}]  # fmt: skip
    return rows


def submit(sandbox: SlurmSandbox, folder: Path) -> tuple[Run, float, float]:
    """A new run on the queue, and wall seconds and peak resident MB of the command."""
    settings = (*SETTINGS, f"data.root={folder}", f"runs_dir={folder / 'runs'}")
    with tempfile.TemporaryFile("w+") as said:
        began = time.perf_counter()
        words = [*RUNYARD, "submit", "--json", *settings]
        command = subprocess.Popen(words, cwd=ROOT, env=sandbox.environment, stdout=said)
        _, status, usage = os.wait4(command.pid, 0)
        wall_s = time.perf_counter() - began
        if status:
            raise SystemExit(f"the submission failed with status {status}")
        said.seek(0)
        return Run.open(json.load(said)["path"]), wall_s, usage.ru_maxrss * 1024 / 1e6


def of_run(run: Run) -> list[journal.Row]:
    return journal.read_journal(run.journal_path)[0]


def until_step_after(run: Run, starts: int) -> float:
    """When a step was first seen, in an epoch's or a checkpoint's row, after so many starts; unix seconds."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        rows = of_run(run)
        begun = [at for at, row in enumerate(rows) if row["event"] == "start"]
        if len(begun) >= starts:
            for row in rows[begun[starts - 1] + 1 :]:
                if row["event"] in ("epoch", "checkpoint"):
                    return float(row["t"])
        time.sleep(0.05)
    raise SystemExit(f"{run.path} did not get further within {PATIENCE_S} s")


def submissions(repeats: int) -> list[Row]:
    walls, memory, delays = [], [], []
    with tempfile.TemporaryDirectory() as place, SlurmSandbox(Path(place, "lab"), nodes=3, accounting=True) as sandbox:
        sandbox.environment |= {"OMP_NUM_THREADS": "1", "RUNYARD_PYTHON": sys.executable}
        subprocess.run([*RUNYARD, "prepare", *DATA, f"data.root={place}"], cwd=ROOT, check=True, capture_output=True)
        for _ in range(repeats):
            run, wall_s, peak_mb = submit(sandbox, Path(place))
            walls.append(wall_s)
            memory.append(peak_mb)
            until_step_after(run, 1)
            killed_at = time.time()
            os.kill(max(tasks_of(run).items())[1], signal.SIGKILL)
            delays.append(until_step_after(run, 2) - killed_at)
            while not run.is_finished:
                time.sleep(0.2)
    return [{"what": "runyard submit, s", "median": statistics.median(walls)},
            {"what": "runyard submit, peak MB", "median": statistics.median(memory)},
            {"what": "killed rank to next step of training (cred_expire 8 s), s", "median": statistics.median(delays)},
            {"what": "the same, the slowest", "median": max(delays)}]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = up_and_down(args.repeats) + submissions(args.repeats)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("", "median", title=f"medians of {args.repeats}")
    for row in rows:
        table.add_row(str(row["what"]), f"{row['median']:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
