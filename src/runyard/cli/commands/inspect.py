"""``runyard inspect``: print a network's layers, shapes, parameters and multiply-adds."""

from __future__ import annotations

import argparse
import json

from runyard.cli.parser import add_overrides

HELP = "print a network's layers, shapes, parameters and multiply-adds"
EXAMPLE = "runyard inspect model=paper_resnet"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> None:
    from runyard import models
    from runyard.config.compose import compose
    from runyard.data import manifest
    from runyard.models import summary

    config = compose(args.overrides).config
    known = config.data.num_classes or {"cifar10": 10, "cifar100": 100}.get(config.data.kind)
    classes = known or len(manifest.load_manifest(manifest.dataset_dir(config.data)).classes)
    network_summary = summary.summarize(
        models.build(config.model, classes, config.data.image_size), config.data.image_size
    )
    if args.json:
        print(json.dumps(network_summary, indent=1))
    else:
        from rich.console import Console

        Console().print(
            summary.summary_table(
                network_summary, f"{config.model.name}, {config.data.image_size} px, {classes} classes"
            )
        )
