"""``runyard predict``: label images that have no labels."""

from __future__ import annotations

import argparse
from pathlib import Path

from runyard.cli.parser import add_run_argument
from runyard.errors import UserError

HELP = "label images that have no labels"
EXAMPLE = "runyard predict @last --images test.npy --out predictions.csv"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_run_argument(parser)
    parser.add_argument(
        "--images",
        required=True,
        type=Path,
        help="a folder of images, a .npy or .npz array, or a pickled dict with a data array",
    )
    parser.add_argument("--out", required=True, type=Path, help="the CSV to write")
    parser.add_argument("--which", choices=["last", "best"], default="last", help="checkpoint (default: last)")
    parser.add_argument("--flip-tta", action="store_true", help="average with the mirrored image")
    parser.add_argument("--columns", default="ID,Labels", help="names of the two columns (default: ID,Labels)")
    parser.add_argument("--trust", action="store_true", help="allow running code that another user owns")
    parser.add_argument(
        "--labels", choices=["index", "name"], default="index", help="write class numbers or names (default: index)"
    )


def run(args: argparse.Namespace) -> None:
    from runyard.runs.code import own_code
    from runyard.runs.run import Run

    columns = tuple(args.columns.split(","))
    if len(columns) != 2 or not all(columns) or columns[0] == columns[1]:
        raise UserError(f"--columns {args.columns}: expected two different names, as ID,Labels")
    run = Run.find(args.run, args.runs_dir)
    # Build the network with the code that the run was created with.
    own_code.exec_run_code(run, args.argv, trusted=args.trust)
    from runyard.predict import predict_to_csv as label

    label(run, args.images, args.out, which=args.which, flip_tta=args.flip_tta, columns=columns, labels=args.labels)
