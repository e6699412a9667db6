"""What ``runyard`` may be told: its verbs, their arguments, and an example of each."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import NoReturn

from runyard import __version__
from runyard.cli.commands import COMMANDS
from runyard.errors import UserError


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; ``verb`` is its name and ``run_verb`` its function. Overrides may stand before and after options.

    Raises:
        UserError: an unknown verb or option, or one that lacks its value.
    """
    args, remaining = _parser().parse_known_args(argv)
    unknown_arguments = [argument for argument in remaining if argument.startswith("-") or "overrides" not in args]
    if unknown_arguments:
        raise UserError(
            f"{unknown_arguments[0]}: runyard {args.verb} takes no such argument; see: runyard {args.verb} --help"
        )
    if remaining:
        args.overrides += remaining
    return args


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Settings, for a verb that composes a configuration."""
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # else argparse counts them among what is required
        metavar="SETTING=VALUE",
        help="as epochs=10, model=starter or optim.lr=1e-3; `runyard settings` lists them",
    )


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """The one run that a verb is about."""
    parser.add_argument("run", metavar="RUN", help="a path, an id or its beginning, or @last")
    add_runs_dir(parser)


def add_runs_dir(parser: argparse.ArgumentParser) -> None:
    """Where runs are looked for by id."""
    parser.add_argument("--runs-dir", default="runs", help="folder that holds the runs (default: runs)")


def positionals(command: str) -> set[str]:
    """Names of the positional arguments of ``verb``: run, runs, overrides, ..."""
    parser = argparse.ArgumentParser()
    import_module(f"runyard.cli.commands.{command}").arguments(parser)
    return {action.dest for action in parser._get_positional_actions()}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with an example of what is right."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.epilog}")


def _parser() -> _Parser:
    top = _Parser(
        prog="runyard",
        description="Take an image classifier from the laptop to a preemptible multi-node allocation.",
        epilog="example: runyard submit experiment=starter epochs=5    (every verb has its own --help)",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"runyard {__version__}")
    commands = top.add_subparsers(title="verbs", required=True, metavar="VERB")
    for name in COMMANDS:
        module = import_module(f"runyard.cli.commands.{name}")
        sub = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=f"example: {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(verb=name, run_verb=module.run)
        module.arguments(sub)
    return top
