"""``runyard leaderboard``: the best runs of each data set, under a limit of parameters."""

from __future__ import annotations

import argparse
import json
import sys

from runyard.cli.parser import runs_dir
from runyard.errors import UserError

HELP = "best runs of each data set, under a limit of parameters"
EXAMPLE = "runyard leaderboard --data cifar10 --max-parameters 5e6"


def arguments(parser: argparse.ArgumentParser) -> None:
    runs_dir(parser)
    parser.add_argument(
        "--metric",
        choices=["top1", "best"],
        default="top1",
        help="test top-1 at the last epoch (default), or at the best one, which flatters",
    )
    parser.add_argument("--data", metavar="NAME", help="one data set only")
    parser.add_argument("--max-parameters", metavar="N", help="leave out larger networks, as 5e6 (default: none is)")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="places shown of each data set (default: 10)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print all places as JSON")
    form.add_argument("--csv", action="store_true", help="print all places as CSV, in full precision")
    form.add_argument("--md", action="store_true", help="print as Markdown")


def run(args: argparse.Namespace) -> None:
    from runyard.analysis.compare import leaderboard, narrative
    from runyard.analysis.compare.choose import choose
    from runyard.analysis.compare.groups import group
    from runyard.analysis.compare.text import as_csv, grid, markdown, terminal_width

    if args.top < 1:
        raise UserError(f"--top {args.top}: expected a whole number from 1")
    limit = None if args.max_parameters is None else _count(args.max_parameters)
    chosen = choose([], everything=True, runs_dir=args.runs_dir)
    boards = leaderboard.boards(group(chosen.runs), args.metric, data=args.data, max_parameters=limit)
    for note in chosen.notes:
        print(f"runyard: {note}", file=sys.stderr)
    places = [place for board in boards for place in leaderboard.as_dicts(board, args.metric)]
    if args.json:
        print(json.dumps(places, indent=1, default=str, allow_nan=False))
    elif args.csv:
        print(as_csv(places), end="")
    else:
        width = terminal_width()
        paragraphs = []
        for board in (board for board in boards if board.ranked):
            columns = leaderboard.columns(board.top(args.top), args.metric)
            more = f", the first {args.top}" if len(board.ranked) > args.top else ""
            paragraphs.append(f"{board.data}: {len(board.ranked)} ranked{more}")
            paragraphs.append(markdown(columns) if args.md else grid(columns, width, heads=2))
        paragraphs += narrative.of_table([row.group for board in boards for row in board.ranked])
        paragraphs += [leaderboard.left_out(boards, limit)]
        print("\n\n".join(narrative.wrapped(p, width) for p in paragraphs if p))


def _count(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value >= 1:
        raise UserError(f"--max-parameters {text}: expected a number from 1, as 5e6")
    return value
