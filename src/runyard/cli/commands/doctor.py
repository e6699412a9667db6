"""``runyard doctor``: check whether a submission with these settings would work, and print fixes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from runyard.cli.parser import add_overrides
from runyard.errors import ExitCode, UserError
from runyard.training.stop_signals import sigterm_as_interrupt

if TYPE_CHECKING:
    from rich.table import Table

    from runyard.cluster.launch.checks.check import Check

HELP = "check whether a submission would work: cluster, data, disks, W&B, and the environment on a compute node"
EXAMPLE = "runyard doctor experiment=paper cluster=nyu_torch cluster.account=YOURS"
DOCTOR_DETAILS = (
    "Takes the arguments of `runyard submit` and changes nothing. Exit code: 0 if no check failed, 2 otherwise."
)
STATE_LABELS = {"passed": "[green]ok[/]", "failed": "[red]failed[/]", "unknown": "[yellow]cannot tell[/]"}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{HELP}\n\n{DOCTOR_DETAILS}"
    add_overrides(parser)
    parser.add_argument("--no-job", action="store_true", help="run nothing on a compute node")
    parser.add_argument("--wait-s", type=float, default=120, help="seconds to wait for a node (default: 120)")
    parser.add_argument("--json", action="store_true", help="print the answers as JSON, and nothing else")


def run(args: argparse.Namespace) -> int:
    import dataclasses
    import json

    from rich.console import Console

    from runyard.cluster.launch.checks.doctor import run_all_checks
    from runyard.cluster.launch.submit import check_context
    from runyard.config.compose import compose
    from runyard.data import manifest

    if not 1 <= args.wait_s <= 86400:
        raise UserError(f"--wait-s={args.wait_s:g}: expected 1 to 86400 seconds")
    composed = compose(args.overrides)
    context = check_context([composed.config], manifest.prepare_command(composed.overrides))
    with sigterm_as_interrupt(), Console(stderr=True, quiet=args.json).status("") as spinner:
        checks = list(
            run_all_checks(context, lambda name: spinner.update(f"{name} …"), job=not args.no_job, wait_s=args.wait_s)
        )
    if args.json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=1))
    else:
        Console(highlight=False).print(checks_table(checks))
    return ExitCode.USER_ERROR if any(check.state == "failed" for check in checks) else 0


def checks_table(checks: list[Check]) -> Table:
    """Return a table with one row per check: its result, and the fix if it did not pass."""
    from rich.markup import escape
    from rich.table import Table

    from runyard.printable import printable

    table = Table("check", "", "found", box=None, pad_edge=False)
    for check in checks:
        fix = f"\n[bold]→ {escape(printable(check.fix))}[/]" if check.fix and check.state != "passed" else ""
        table.add_row(check.name, STATE_LABELS[check.state], escape(printable(check.result)) + fix)
    return table
