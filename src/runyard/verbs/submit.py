"""``runyard submit``: overrides become a run, and the run a job."""

from __future__ import annotations

import argparse

from runyard.arguments import overrides
from runyard.verbs.following import follow

HELP = "create a run and start it, following it to its end"
EXAMPLE = "runyard submit experiment=auto cluster=local"


def arguments(parser: argparse.ArgumentParser) -> None:
    overrides(parser)
    parser.add_argument("--cfg", choices=["job"], help="print the composed configuration and submit nothing")
    parser.add_argument("--detach", action="store_true", help="return once the job has started")
    parser.add_argument("--json", action="store_true", help="print run, job and outcome as JSON, and nothing else")


def run(args: argparse.Namespace) -> int:
    from cluster import submit as launcher
    from cluster.compose import compose

    wanted = (
        args.overrides
        if any(o.lstrip("+").startswith("experiment=") for o in args.overrides)
        else ["experiment=auto", *args.overrides]
    )
    if args.cfg:
        import yaml

        print(yaml.safe_dump(compose(wanted).values, sort_keys=False), end="")
        return 0
    run, job = launcher.submit(wanted)
    return follow(run, job, detach=args.detach, as_json=args.json)
