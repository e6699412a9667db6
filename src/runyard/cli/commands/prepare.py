"""``runyard prepare``: download, convert and verify a data set."""

from __future__ import annotations

import argparse
import json
from typing import Any

from runyard.cli.parser import add_overrides

HELP = "download, convert and verify a data set"
EXAMPLE = "runyard prepare data=cifar10"
NAMES_SHOWN = 3


def arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument("--json", action="store_true", help="print the manifest")


def run(args: argparse.Namespace) -> None:
    from runyard.config.compose import compose
    from runyard.data import manifest
    from runyard.data.prepare.pipeline import prepare_dataset as prepare_data

    data = compose(args.overrides).config.data
    prepared = prepare_data(data, progress=not args.json)
    if args.json:
        print(json.dumps(manifest.manifest_to_dict(prepared), indent=1))
    else:
        splits = ", ".join(f"{split.samples:,} {name}" for name, split in prepared.splits.items())
        print(
            f"{manifest.dataset_dir(data)}: {splits} images in {len(prepared.classes)} classes, "
            f"verified{changed_files_text(prepared.writer)}"
        )


def changed_files_text(writer: dict[str, Any]) -> str:
    """Return how many image files were converted, skipped or left out, by kind; an empty string if none were."""
    text = ""
    for change in ("converted", "skipped", "left_out"):
        if files := writer.get(change, {}).get("files", 0):
            kinds = ", ".join(f"{count} {kind}" for kind, count in writer[change]["kinds"].items())
            first = ", ".join(writer[change]["first"][:NAMES_SHOWN])
            more = ", ..." if files > NAMES_SHOWN else ""
            text += f"; {files:,} {change.replace('_', ' ')} ({kinds}{f': {first}{more}' if first else ''})"
    return text
