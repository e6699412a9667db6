"""``runyard compare``: compare runs: their differences, whether these are significant, and what they cost."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from runyard.cli.parser import add_selection
from runyard.errors import UserError

if TYPE_CHECKING:
    from runyard.analysis.compare.choose import RunSelection
    from runyard.analysis.compare.importance import Sweep
    from runyard.analysis.compare.pairs import PairTests
    from runyard.analysis.compare.table import TableRow

HELP = "compare runs: what differs, whether it is real, what it cost"
EXAMPLE = "runyard compare --sweep @last --target 0.92"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument("--wandb", metavar="PROJECT", help="the runs of a W&B project, ENTITY/PROJECT, not of a folder")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="keep runs that match, as 'optim.lr<1e-3' or 'last>=90%% and state=finished'; may be repeated",
    )
    parser.add_argument(
        "--by-run", action="store_true", help="show one row per run; do not group the seeds of one configuration"
    )
    parser.add_argument("--target", metavar="TOP1", help="also show the time to reach this test top-1, as 0.92 or 92%%")
    parser.add_argument("--baseline", metavar="ROW", help="compare every row with this one: its name, or a run's id")
    parser.add_argument("--sort", default="last", metavar="COLUMN", help="best first (default: last); =-COLUMN: worst")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write one page that needs no network")
    parser.add_argument("--png", type=Path, metavar="DIR", help="also write figures for a paper: .png, .pdf and .svg")
    parser.add_argument(
        "--report", metavar="TITLE", help="with --wandb: also create a W&B Report and print its address"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as JSON")
    form.add_argument("--csv", action="store_true", help="print the table as CSV, in full precision")
    form.add_argument("--md", action="store_true", help="print as Markdown")


def run(args: argparse.Namespace) -> None:
    from runyard.analysis.compare import importance, table
    from runyard.analysis.compare.choose import select_runs
    from runyard.analysis.compare.groups import group_runs
    from runyard.analysis.compare.measures import parse_accuracy
    from runyard.analysis.compare.pairs import compare_groups

    if args.report is not None and args.wandb is None:
        raise UserError(f"--report {args.report}: a W&B Report needs runs from W&B", "add --wandb ENTITY/PROJECT")
    target = parse_accuracy(args.target) if args.target is not None else None
    runs_dir, skipped = (args.runs_dir, []) if args.wandb is None else _from_wandb(args)
    selection = select_runs(
        args.runs,
        everything=args.all or (args.wandb is not None and not args.runs),
        tag=args.tag,
        sweep=args.sweep,
        conditions=args.where,
        runs_dir=runs_dir,
    )
    selection = replace(selection, notes=[*skipped, *selection.notes])
    groups = group_runs(selection.runs, by_run=args.by_run)
    rows = table.sort_rows(table.table_rows(groups, target), args.sort)
    pairs = compare_groups([row.group for row in rows], args.baseline)
    sweep = importance.summarize_sweep(groups, selection.refused_trials) if selection.sweep else None
    for note in selection.notes:
        print(f"runyard: {note}", file=sys.stderr)
    _print(args, selection, rows, target, pairs, sweep)
    # Files come after the table, so that one that cannot be written does not lose the table.
    if args.html is not None:
        from runyard.analysis.page.build import write_page

        named_sweep = (sweep, selection.sweep) if sweep and selection.sweep else None
        page = write_page(args.html, rows, pairs, notes=selection.notes, target=target, sweep=named_sweep)
        print(f"runyard: wrote {page}", file=sys.stderr)
    if args.png is not None:
        from runyard.analysis.figures.build import write_figures

        written = write_figures(args.png, [row.group for row in rows])
        print(f"runyard: wrote {len(written)} figures into {args.png}, each as .png, .pdf and .svg", file=sys.stderr)
    if args.report is not None:
        print(f"runyard: the report is at {_report(args, rows, target, pairs)}", file=sys.stderr)


def _print(
    args: argparse.Namespace,
    selection: RunSelection,
    rows: list[TableRow],
    target: float | None,
    pairs: PairTests,
    sweep: Sweep | None,
) -> None:
    from runyard.analysis.compare import importance, narrative, table
    from runyard.analysis.compare.text import as_csv, markdown, terminal_width, text_table

    if args.json:
        print(
            json.dumps(
                narrative.as_json_document(rows, pairs, sweep, selection), indent=1, default=str, allow_nan=False
            )
        )
    elif args.csv:
        print(as_csv([table.csv_row(row) for row in rows]), end="")
    else:
        width, groups = terminal_width(), [row.group for row in rows]
        render_table = markdown if args.md else lambda columns: text_table(columns, width)
        remarks = [*narrative.column_notes(groups, target), *narrative.table_notes(groups)]
        paragraphs = [render_table(table.table_columns(rows, target)), *remarks]
        paragraphs += [] if sweep else narrative.failure_text(importance.failures_by_reason(selection.runs))
        paragraphs += narrative.pair_text(pairs, render_table)
        paragraphs += narrative.sweep_text(sweep, selection.sweep, render_table) if sweep and selection.sweep else []
        print("\n\n".join(narrative.wrap(p, width) for p in paragraphs))


def _report(args: argparse.Namespace, rows: list[TableRow], target: float | None, pairs: PairTests) -> str:
    """Create a W&B Report with the same table and tests, the page's curves and its colors. Returns its address."""
    from runyard.analysis.compare import narrative, table
    from runyard.analysis.compare.groups import differing_settings
    from runyard.analysis.compare.text import markdown
    from runyard.analysis.figures.group_style import group_styles
    from runyard.analysis.page.content import CHARTED
    from runyard.tracking.wandb.report import publish

    groups = [row.group for row in rows]
    remarks = [*narrative.column_notes(groups, target), *narrative.table_notes(groups)]
    paragraphs = [markdown(table.table_columns(rows, target)), *remarks]
    paragraphs += narrative.pair_text(pairs, markdown)
    colors = {
        run.directory.name: style.light for g, style in zip(groups, group_styles(groups), strict=True) for run in g.runs
    }
    measured = {name for group in groups for run in group.runs for name in run.series}
    curves = [(metric.wandb, metric.label) for metric in CHARTED if metric.name in measured and metric.wandb]
    return publish(args.wandb, args.report, paragraphs, colors, curves, differing_settings(groups))


def _from_wandb(args: argparse.Namespace) -> tuple[Path, list[str]]:
    """Download the project's runs with a progress bar. Returns their directory and notes on skipped runs."""
    from rich.console import Console
    from rich.progress import Progress

    from runyard.tracking.wandb.fetch import fetch

    with Progress(console=Console(stderr=True, quiet=not sys.stderr.isatty()), transient=True) as bar:
        task = bar.add_task(args.wandb, total=None)
        return fetch(args.wandb, lambda done, total: bar.update(task, completed=done, total=total))
