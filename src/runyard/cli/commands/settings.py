"""``runyard settings``: list every setting, its default and what it means."""

from __future__ import annotations

import argparse

HELP = "list every setting, its default and what it means"
EXAMPLE = "runyard settings optim"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", nargs="?", default="", help="list only the settings that begin with this text")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> None:
    from runyard.config.catalogue import print_settings

    print_settings(args.prefix, as_json=args.json)
