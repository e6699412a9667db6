"""docs/guarantees.md, rendered from docs/guarantees.json: what came of the last full run, and what is not promised."""

from __future__ import annotations

from typing import Any

from tests.torture.ground import ROOT

RESULTS, PAGE = ROOT / "docs" / "guarantees.json", ROOT / "docs" / "guarantees.md"

HEAD = """\
# What is promised, and what attacked it

Each row is a promise that a program tries to break: `make torture` (`SEED=`, `MINUTES=`). It makes the attack as often
as the table says, at moments that come from the seed, and compares what is left with what should be. Then it switches
off the mechanism that keeps the promise and makes the attack again: that control must fail, or the attack could see no
fault. A short form is part of `make test`. This page is rendered from [guarantees.json](guarantees.json); a test
compares the two.

"""
FOOT = """\

## What is not promised

- **Other hardware, other bits.** Bit for bit means: the same number of ranks, the same kind of device, the same
  versions of torch and of this project. With another number of ranks a run continues with the same images in the same
  steps; sums are taken in another order, and batch norm, unless `sync_batch_norm` is set, sees each rank's images
  alone.
- **GPUs without `deterministic=true`.** Some of cuDNN's and cuBLAS's algorithms add in an order of their own. The
  attacks were made on CPUs with gloo; on NCCL the same layout of gradients is used, and the bits are not compared here.
- **What was not saved yet is learned again.** A killed rank costs the steps since the last checkpoint
  (`checkpoint.every_s`); a stop signal that is heard costs none.
- **Disks that lie.** A disk that confirms an fsync and loses the bytes can take the newest checkpoint: it is noticed by
  its sha256, and an older one is used. Where it takes all that are kept, the run is refused, not begun anew.
- **A node or a file system that hangs for ever** ends the job at its time limit. What a killed process's pending reads
  hold on a network file system is the kernel's to free.
- **Root, and the user's own account.** Who may act as you can change what you run. Against other users of the machine
  see SECURITY.md.
- **Weights & Biases keeps what it was sent.** `sync` sends what was not; it does not restore what was deleted there.
- **Speed.** No attack measures it; docs/benchmarks.md does.
"""


def render(result: dict[str, Any]) -> str:
    """The page for what a run of the harness came to."""
    rows = result["rows"]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    made, survived = (sum(row[key] for row in rows) for key in ("attacks", "survived"))
    lines = [
        f"{made:,} attacks, {survived:,} survived. {result['machine']}; {versions}. Seeds and commits by row: "
        f"{', '.join(sorted({str(row['seed']) for row in rows}))}; "
        f"{', '.join(sorted({name for row in rows for name in row['commits']}))}.",
        "",
        "| # | promise | attack | attacks | survived | seconds | date | control: what is off, and what it broke of |",
        "|--:|---|---|--:|--:|--:|---|---|",
        *map(_row, rows),
    ]
    if short := [row for row in rows if row["attacks"] < row["at_least"] and row["unable"] is None]:
        wanting = ", ".join(f"{row['number']} ({row['attacks']} of {row['at_least']})" for row in short)
        lines += ["", f"Fewer attacks than a full run makes, for want of time: {wanting}."]
    if failures := [(row["number"], failure) for row in rows for failure in row["failures"]]:
        lines += ["", "## What broke", ""]
        lines += [f"- {n}, attack {failure['attack']}: {_cell(failure['broke'])}" for n, failure in failures]
    lines += ["", "## Where they struck", ""]
    for row in rows:
        struck = sorted(row["struck"].items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{_cell(where)} {count}" for where, count in struck)
        lines += [f"- {row['number']}: {shown or 'nothing'}"]
    return HEAD + "\n".join(lines) + "\n" + FOOT


def _row(row: dict[str, Any]) -> str:
    attacks = f"none: {row['unable']}" if row["unable"] else f"{row['attacks']:,}"
    control = f"{row['switched_off']}: {row['control']}" if row["control"] else f"**{row['switched_off']}: not seen**"
    cells = (row["number"], row["promise"], row["attack"], attacks, f"{row['survived']:,}", f"{row['seconds']:,.0f}",
             row["date"], control)  # fmt: skip
    return "| " + " | ".join(_cell(str(cell)) for cell in cells) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
