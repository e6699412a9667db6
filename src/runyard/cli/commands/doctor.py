"""``runyard doctor``: would a submission with these settings work, and what mends it if not."""

from __future__ import annotations

import argparse
from typing import Any

from runyard.cli.parser import overrides
from runyard.errors import USER_ERROR, UserError
from runyard.training.stop_signals import as_ctrl_c

HELP = "check whether a submission would work: cluster, data, disks, W&B, and the environment on a compute node"
EXAMPLE = "runyard doctor experiment=paper cluster=nyu_torch cluster.account=YOURS"
MORE = "Takes what `runyard submit` takes, and leaves nothing behind. Exit code: 0 nothing failed, 2 something did."
WORDS = {"passed": "[green]ok[/]", "failed": "[red]failed[/]", "unknown": "[yellow]cannot tell[/]"}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{HELP}\n\n{MORE}"
    overrides(parser)
    parser.add_argument("--no-job", action="store_true", help="run nothing on a compute node")
    parser.add_argument("--wait-s", type=float, default=120, help="how long it may wait for a node (default: 120)")
    parser.add_argument("--json", action="store_true", help="print the answers as JSON, and nothing else")


def run(args: argparse.Namespace) -> int:
    import dataclasses
    import json

    from rich.console import Console

    from runyard.cluster.launch.checks.doctor import examine
    from runyard.cluster.launch.submit import subject
    from runyard.config.compose import compose
    from runyard.data import manifest

    if not 1 <= args.wait_s <= 86400:
        raise UserError(f"--wait-s={args.wait_s:g}: expected 1 to 86400 seconds")
    named = any(o.lstrip("+").startswith("experiment=") for o in args.overrides)
    composed = compose(args.overrides if named else ["experiment=auto", *args.overrides])
    asked = subject([composed.config], manifest.prepare_command(composed.overrides))
    with as_ctrl_c(), Console(stderr=True, quiet=args.json).status("") as shown:
        checks = list(examine(asked, lambda name: shown.update(f"{name} …"), job=not args.no_job, wait_s=args.wait_s))
    if args.json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=1))
    else:
        Console(highlight=False).print(table(checks))
    return USER_ERROR if any(check.state == "failed" for check in checks) else 0


def table(checks: list[Any]) -> Any:
    """What was found, and below it what mends it."""
    from rich.markup import escape
    from rich.table import Table

    from runyard.printable import printable

    shown = Table("check", "", "found", box=None, pad_edge=False)
    for check in checks:
        mend = f"\n[bold]→ {escape(printable(check.mend))}[/]" if check.mend and check.state != "passed" else ""
        shown.add_row(check.name, WORDS[check.state], escape(printable(check.found)) + mend)
    return shown
