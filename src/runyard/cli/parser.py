"""The command-line parser: commands, their arguments, and an example of each."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import NoReturn

from runyard import __version__
from runyard.cli.commands import COMMANDS
from runyard.errors import UserError


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the arguments; ``command`` is the command's name and ``run_command`` its function.

    Overrides may stand before and after options.

    Raises:
        UserError: an unknown command or option, or an option without its value.
    """
    args, remaining = _parser().parse_known_args(argv)
    unknown_arguments = [argument for argument in remaining if argument.startswith("-") or "overrides" not in args]
    if unknown_arguments:
        raise UserError(
            f"{unknown_arguments[0]}: runyard {args.command} takes no such argument",
            f"see: runyard {args.command} --help",
        )
    if remaining:
        args.overrides += remaining
    return args


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the SETTING=VALUE arguments of a command that composes a configuration."""
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # without it argparse reports them as required
        metavar="SETTING=VALUE",
        help="as epochs=10, model=starter or optim.lr=1e-3; `runyard settings` lists them",
    )


def add_following(parser: argparse.ArgumentParser) -> None:
    """Add --attach, --detach and --json of a command that starts a job."""
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--attach", action="store_true", help="stay attached until the run ends (default: cluster=local)")
    mode.add_argument(
        "--detach", action="store_true", help="return once the job is started or queued (default on SLURM)"
    )
    parser.add_argument("--json", action="store_true", help="print run, job and outcome as JSON, and nothing else")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a command that reads several finished runs."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="paths, ids or their beginnings, or @last")
    add_runs_dir(parser)
    parser.add_argument("--all", action="store_true", help="every run of the folder")
    parser.add_argument("--tag", help="runs that have this tag (tracking.tags)")
    parser.add_argument("--sweep", metavar="ID", help="the runs of a sweep, by its id or its beginning, or @last")


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Add the RUN argument of a command that works on one run."""
    parser.add_argument("run", metavar="RUN", help="a path, an id or its beginning, or @last")
    add_runs_dir(parser)


def add_runs_dir(parser: argparse.ArgumentParser) -> None:
    """Add --runs-dir, the directory in which run ids are looked up."""
    parser.add_argument("--runs-dir", default="runs", help="folder that holds the runs (default: runs)")


def positionals(command: str) -> set[str]:
    """Return the names of the positional arguments of ``command``: run, runs, overrides, ..."""
    parser = argparse.ArgumentParser()
    import_module(f"runyard.cli.commands.{command}").arguments(parser)
    return {action.dest for action in parser._get_positional_actions()}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose error is one line: what is wrong, and an example of a correct command."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, self.epilog or "")


def _parser() -> _Parser:
    top = _Parser(
        prog="runyard",
        description="Take an image classifier from the laptop to a preemptible multi-node allocation.",
        epilog="example: runyard submit experiment=starter epochs=5    (every command has its own --help)",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"runyard {__version__}")
    top.add_argument(
        "--on", metavar="HOST[:PATH]", help="send the project over ssh and run the command there (docs/clusters.md)"
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
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
        sub.set_defaults(command=name, run_command=module.run)
        module.arguments(sub)
    return top
