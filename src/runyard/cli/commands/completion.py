"""``runyard completion``: print the shell's completion script."""

from __future__ import annotations

import argparse

HELP = "print the shell's completion script"
EXAMPLE = 'eval "$(runyard completion bash)"'


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh"])
    parser.add_argument("--line", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> None:
    from runyard.cli.completion import completions, script

    print(script(args.shell) if args.line is None else "\n".join(completions(args.line)))
