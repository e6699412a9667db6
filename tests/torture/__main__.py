"""``python -m tests.torture --seed 1 --minutes 60``: attack every promise, print the table, write the JSON."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tests.torture.ground import ROOT, Ground
from tests.torture.harness import CONTROL, Harness, Row, together, write
from tests.torture.page import PAGE, RESULTS, render
from tests.torture.promises import PROMISES


def main() -> int:
    parser = arguments()
    args = parser.parse_args()
    if args.go_on and args.json is None:
        parser.error("--go-on: expected --json FILE with it")
    chosen = [p for p in PROMISES if args.only is None or p.number in args.only]
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="torture-", dir=args.folder))
    console.print(f"seed {args.seed}, {len(chosen)} promises, at most {args.minutes:g} min, in {folder}")
    with Ground(folder) as ground, Live(console=console, refresh_per_second=2) as live:

        def told(row: Row) -> None:
            live.update(table(list(harness.rows.values())))
            for failure in row.failures[shown[row.number] :]:
                shown[row.number] += 1
                again = CONTROL if failure["attack"] == "control" else failure["attack"]
                console.print(f"{row.number}: {failure['broke']}", style="red", markup=False, highlight=False)
                words = f"--seed {args.seed} --only {row.number} --attack {again}"
                console.print(f"   again: python -m tests.torture {words}", highlight=False)
            if args.json:  # as far as it came, should it be cut off
                write(harness.result(), args.json)

        shown: Counter[int] = Counter()
        before = json.loads(args.json.read_text()) if args.go_on and args.json.exists() else None
        harness = Harness(chosen, ground, args.seed, told, before)
        if args.attack is not None:
            for promise in chosen:
                harness.make(promise, args.attack)
        else:
            counts = {p.number: p.short if args.counts == "short" else p.at_least for p in chosen}
            harness.run(counts, args.minutes or math.inf)
    rows = list(harness.rows.values())
    if args.page:
        result = together(json.loads(RESULTS.read_text()) if RESULTS.exists() else {}, harness.result())
        write(result, RESULTS)
        PAGE.write_text(render(result))
        console.print(f"{RESULTS.relative_to(ROOT)} and {PAGE.relative_to(ROOT)} are written")
    failed = any(row.failures for row in rows)
    if not failed:
        shutil.rmtree(folder, ignore_errors=True)
    return int(failed)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="everything random comes from it (default: 1)")
    parser.add_argument("--minutes", type=float, default=0, help="stop after this long; 0: once all is done (default)")
    numbers = "numbers of promises, as 1,3 (default: all)"
    parser.add_argument("--only", type=lambda text: [int(n) for n in text.split(",")], metavar="N,N", help=numbers)
    again = f"make this one attack again; {CONTROL}: the control"
    parser.add_argument("--attack", type=int, metavar="N", help=again)
    parser.add_argument("--counts", choices=("full", "short"), default="full", help="how many attacks (default: full)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write there, after each attack, what came of all")
    parser.add_argument("--go-on", action="store_true", help="begin with what an earlier run left in --json FILE")
    page = "put these rows into docs/guarantees.json, and render docs/guarantees.md"
    parser.add_argument("--page", action="store_true", help=page)
    parser.add_argument("--folder", type=Path, help="where to make the attacks (default: a temporary folder)")
    return parser


def table(rows: list[Row]) -> Table:
    shown = Table("#", "promise", "attacks", "survived", "s", "control")
    for row in rows:
        control = "" if row.control is None else "fails, as it must"
        held = row.survived == row.attacks and not row.failures
        attacks = row.unable or f"{row.attacks} of {row.at_least}"
        shown.add_row(str(row.number), row.promise.partition(",")[0], attacks, str(row.survived),
                      f"{row.seconds:.0f}", control, style=None if held else "red")  # fmt: skip
    return shown


if __name__ == "__main__":
    sys.exit(main())
