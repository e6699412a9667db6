"""What `runyard compare` costs on many runs: wall seconds and peak memory of whole processes, on fabricated journals.

    python benchmarks/compare.py [--runs 50 1000] [--epochs 200] [--repeats 3] [--json]

Of up to 50 runs also the page (--html): its size, and the seconds until a headless Chromium has drawn its first chart.
The runs have the real format (tests/support/fake_runs.py): three seeds a setting, and up to 50 runs 10,000 predictions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from benchmarks.commands import RUNYARD, cost
from tests.support.browser import Browser
from tests.support.fake_runs import fabricate
from tests.support.settings import compose

PREDICTIONS_TO = 50  # runs: more would fill a small disk
FORMS = {"table": ["--target", "0.9"], "by run": ["--by-run"], "JSON": ["--json"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[50, 1000])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    config = compose("experiment=paper", f"epochs={args.epochs}")
    rows = []
    for count in args.runs:
        with tempfile.TemporaryDirectory() as folder:
            for at in range(count):
                fabricate(
                    Path(folder),
                    config,
                    f"20260901-{at:06d}-paper-ab12",
                    settings={"seed": at % 3, "optim.lr": 1e-3 * (1 + at // 3 % 10), "augment.rotation_deg": at // 30},
                    top1=0.9 + 0.0001 * (at * 7 % 97),
                    restarts=(args.epochs // 2,) if at % 5 == 0 else (),
                    test_images=10_000 if count <= PREDICTIONS_TO else 0,
                )
            page = Path(folder) / ".page.html"
            forms = FORMS | ({"page": ["--html", str(page)]} if count <= PREDICTIONS_TO else {})
            for form, options in forms.items():
                command = [RUNYARD, "compare", "--all", "--runs-dir", folder, *options]
                cost(command)
                seconds, memory = zip(*(cost(command) for _ in range(args.repeats)), strict=True)
                rows.append(
                    {
                        "runs": count,
                        "epochs": args.epochs,
                        "form": form,
                        "median_s": statistics.median(seconds),
                        "peak_mb": max(memory),
                    }
                )
                if form == "page":
                    rows[-1] |= {"page_mb": page.stat().st_size / 1e6, "drawn_s": drawn_s(page, args.repeats)}
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    heads = ("runs", "epochs", "form", "wall, s", "peak memory, MB", "page, MB", "first drawing, s")
    table = Table(*heads, title=f"medians of {args.repeats}")
    for row in rows:
        table.add_row(
            f"{row['runs']:,}",
            str(row["epochs"]),
            str(row["form"]),
            f"{row['median_s']:.2f}",
            f"{row['peak_mb']:.0f}",
            *(f"{row[k]:.2f}" if k in row else "" for k in ("page_mb", "drawn_s")),
        )
    Console().print(table)


def drawn_s(page: Path, repeats: int) -> float:
    """From opening the page to its first chart on the screen: the median, after one that warms up."""
    browser = Browser()
    browser.window(1280, 900)
    took_ms = []
    for _ in range(repeats + 1):
        browser.open(page, "document.documentElement.dataset.drawn")
        took_ms.append(float(browser.run("document.documentElement.dataset.drawn")))
    browser.close()
    return statistics.median(took_ms[1:]) / 1000


if __name__ == "__main__":
    main()
