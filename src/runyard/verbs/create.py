"""``runyard create``: create a run and start nothing, to be trained by `runyard train`."""

from __future__ import annotations

import argparse

from runyard.arguments import overrides

HELP = "create a run and start nothing, to be trained by `runyard train`"
EXAMPLE = "runyard create experiment=paper"


def arguments(parser: argparse.ArgumentParser) -> None:
    overrides(parser)


def run(args: argparse.Namespace) -> None:
    from cluster.compose import compose
    from runyard.run import Run

    composed = compose(args.overrides)
    print(Run.create(composed.config, composed.overrides).path)
