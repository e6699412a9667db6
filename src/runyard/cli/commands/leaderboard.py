"""``runyard leaderboard``: the best runs of each data set, under a limit of parameters."""

from __future__ import annotations

import argparse
import json
import sys

from runyard.cli.parser import add_runs_dir
from runyard.errors import UserError

HELP = "best runs of each data set, under a limit of parameters"
EXAMPLE = "runyard leaderboard --data cifar10 --max-parameters 5e6"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_runs_dir(parser)
    parser.add_argument(
        "--metric",
        choices=["top1", "best"],
        default="top1",
        help="test top-1 at the last epoch (default), or at the best epoch, which is biased upwards",
    )
    parser.add_argument("--data", metavar="NAME", help="one data set only")
    parser.add_argument("--max-parameters", metavar="N", help="leave out larger networks, as 5e6 (default: no limit)")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="entries shown of each data set (default: 10)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print all entries as JSON")
    form.add_argument("--csv", action="store_true", help="print all entries as CSV, in full precision")
    form.add_argument("--md", action="store_true", help="print as Markdown")


def run(args: argparse.Namespace) -> None:
    from runyard.analysis.compare import leaderboard, narrative
    from runyard.analysis.compare.choose import select_runs
    from runyard.analysis.compare.groups import group_runs
    from runyard.analysis.compare.text import as_csv, markdown, terminal_width, text_table

    if args.top < 1:
        raise UserError(f"--top {args.top}: expected a whole number at least 1")
    limit = None if args.max_parameters is None else _count(args.max_parameters)
    selection = select_runs([], everything=True, runs_dir=args.runs_dir)
    boards = leaderboard.make_leaderboards(
        group_runs(selection.runs), args.metric, data=args.data, max_parameters=limit
    )
    for note in selection.notes:
        print(f"runyard: {note}", file=sys.stderr)
    entries = [entry for board in boards for entry in leaderboard.as_dicts(board, args.metric)]
    if args.json:
        print(json.dumps(entries, indent=1, default=str, allow_nan=False))
    elif args.csv:
        print(as_csv(entries), end="")
    else:
        width = terminal_width()
        paragraphs = []
        for board in (board for board in boards if board.rows):
            columns = leaderboard.leaderboard_columns(board.top(args.top), args.metric)
            more = f", the first {args.top}" if len(board.rows) > args.top else ""
            paragraphs.append(f"{board.data}: {len(board.rows)} ranked{more}")
            paragraphs.append(markdown(columns) if args.md else text_table(columns, width, heads=2))
        paragraphs += narrative.table_notes([row.group for board in boards for row in board.rows])
        paragraphs += [leaderboard.exclusion_text(boards, limit)]
        print("\n\n".join(narrative.wrap(p, width) for p in paragraphs if p))


def _count(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value >= 1:
        raise UserError(f"--max-parameters {text}: expected a number from 1, as 5e6")
    return value
