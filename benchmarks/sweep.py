"""The sweep that docs/comparing.md shows: two learning rates x three seeds of experiment=starter, as one SLURM array.

    python benchmarks/sweep.py FOLDER [--epochs 12] [--data data] [--pictures docs]

Starts a throwaway SLURM with accounting, submits the array to it through ``runyard submit -m``, waits for its end,
and leaves the runs in FOLDER. ``--pictures`` also takes pictures of the page, of sizes that people look at it in.
Twelve minutes on two cores: two runs at once, of one rank each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.progress import Progress

from runyard.cluster.rehearsal.sandbox import SlurmSandbox
from runyard.runs import journal

ROOT = Path(__file__).resolve().parents[1]
GRID = ("optim.lr=0.5,1.0", "seed=0,1,2")
POLL_S = 2.0
RUNYARD = (sys.executable, "-m", "runyard")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--pictures", type=Path, metavar="DIR")
    args = parser.parse_args()
    train(args.folder.absolute(), args.epochs, args.data.absolute())
    if args.pictures:
        pictures(args.folder.absolute(), args.pictures)
    print(f"runyard compare --sweep @last --runs-dir {args.folder}")


def train(folder: Path, epochs: int, data: Path) -> None:
    """Submit, and wait until SLURM knows of no job any more."""
    settings = ["experiment=starter", f"epochs={epochs}", f"data.root={data}", f"runs_dir={folder}",
                "cluster=rehearsal", "cluster.nodes=1", "cluster.timeout_min=30", "cluster.array_parallelism=2",
                *GRID]  # fmt: skip
    with tempfile.TemporaryDirectory() as place, SlurmSandbox(Path(place, "lab"), nodes=2, accounting=True) as sandbox:
        command = [*RUNYARD, "submit", "--multirun", "--json", *settings]
        made = subprocess.run(command, cwd=ROOT, env=sandbox.environment, capture_output=True, text=True)
        if made.returncode:
            raise SystemExit(made.stderr)
        runs = [Path(run["path"]) for run in json.loads(made.stdout)]
        with Progress() as bar:
            task = bar.add_task(f"{len(runs)} runs", total=len(runs) * epochs)
            while sandbox.run("squeue", "--noheader").strip():
                time.sleep(POLL_S)
                bar.update(task, completed=sum(epochs_of(run) for run in runs))
        jobs = ("sacct", "--allocations", "--parsable2", "--format=JobID,State,Elapsed,ExitCode,NodeList")
        print(sandbox.run(*jobs))


def epochs_of(run: Path) -> int:
    journal_path = run / "metrics.jsonl"
    return len(journal.epochs(journal.read_journal(journal_path)[0])) if journal_path.exists() else 0


def pictures(folder: Path, to: Path) -> None:
    """The page as a laptop and a telephone show it, and its curves as figures for a paper."""
    from tests.support.browser import Browser

    page = folder / "compare.html"
    subprocess.run([*RUNYARD, "compare", "--sweep", "@last", "--runs-dir", str(folder), "--target", "0.85", "--html",
                    str(page), "--png", str(folder / "figures")], check=True, cwd=ROOT)  # fmt: skip
    browser = Browser()
    try:
        for name, width, height, dark in (("laptop", 1280, 900, False), ("telephone", 390, 844, True)):
            browser.window(width, height, dark=dark)
            browser.open(page)
            time.sleep(1)  # the charts draw after the page is there
            browser.picture(to / f"compare_{name}.png", whole=name == "laptop")
    finally:
        browser.close()


if __name__ == "__main__":
    main()
