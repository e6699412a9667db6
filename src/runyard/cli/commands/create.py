"""``runyard create``: create a run directory without starting it; train it with `runyard train`."""

from __future__ import annotations

import argparse
import json

from runyard.cli.parser import add_overrides

HELP = "create a run directory without starting it; train it with `runyard train`"
EXAMPLE = "runyard create experiment=paper"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="make a grid over comma-separated values: seed=0,1,2"
    )
    parser.add_argument("--json", action="store_true", help="print the run as JSON, or the list of a grid's runs")


def run(args: argparse.Namespace) -> None:
    from runyard.config.compose import compose, compose_grid
    from runyard.runs.run import Run, new_id

    points = compose_grid(args.overrides) if args.multirun else [compose(args.overrides)]
    sweep = new_id(points[0].config.name) if len(points) > 1 else None
    runs = [Run.create(point.config, point.overrides, sweep) for point in points]
    if args.json:
        rows = [{"run": run.id, "path": str(run.path)} for run in runs]
        print(json.dumps(rows[0] if sweep is None else rows))
        return
    for run in runs:
        print(run.path)
