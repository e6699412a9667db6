"""``runyard submit``: overrides become a run, and the run a job; with -m a grid of runs and one array of jobs."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable

from runyard.cli.commands.following import announce, follow, followed
from runyard.cli.parser import overrides
from runyard.errors import INTERRUPTED, UserError
from runyard.training.stop_signals import as_ctrl_c

HELP = "create a run and start it: here, followed to its end, or on SLURM's queue"
EXAMPLE = "runyard submit experiment=paper cluster=slurm cluster.nodes=2 cluster.gpus_per_node=4"


def arguments(parser: argparse.ArgumentParser) -> None:
    overrides(parser)
    parser.add_argument("-m", "--multirun", action="store_true", help="each comma in a value spans a grid: seed=0,1,2")
    parser.add_argument("--dry-run", action="store_true", help="print the batch script and the cost; submit nothing")
    parser.add_argument("--after", metavar="RUN|JOB", help="start once that run or job number has ended well")
    parser.add_argument("--cfg", choices=["job"], help="print the composed configuration and submit nothing")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--attach", action="store_true", help="follow to the end (what cluster=local does by itself)")
    how.add_argument("--detach", action="store_true", help="return once the job has started (what SLURM's do)")
    parser.add_argument("--json", action="store_true", help="print run, job and outcome as JSON, and nothing else")


def run(args: argparse.Namespace) -> int:
    from runyard.cluster.launch import submit as launcher
    from runyard.cluster.launch.dry_run import show
    from runyard.config.compose import compose
    from runyard.tracking.wandb.agent import handed_out

    named = any(o.lstrip("+").startswith("experiment=") for o in args.overrides)
    wanted = args.overrides if named else ["experiment=auto", *args.overrides]
    if args.cfg:
        import yaml

        if args.json or args.multirun:
            raise UserError(f"--cfg {args.cfg} prints one configuration, as YAML: leave out --json and -m")
        print(yaml.safe_dump(compose(wanted).values, sort_keys=False), end="")
        return 0
    after = None if args.after is None else job_number(args.after, lambda: composed_runs_dir(wanted, args.multirun))
    handed = handed_out(os.environ)
    if handed is not None:
        if args.multirun or args.detach:
            raise UserError("W&B's agent hands out one run and waits for its end: leave out -m and --detach")
        wanted = [*wanted, *handed.overrides(wanted, compose(wanted).config)]
    plan = launcher.plan(wanted, sweep=args.multirun, after=after, dry_run=args.dry_run, handed=handed)
    if args.dry_run:
        show(plan, as_json=args.json)
        return 0
    local = plan.config.cluster.launcher == "local"
    if local and len(plan.points) > 1:
        return one_after_the_other(plan, args)
    if args.attach and len(plan.points) > 1:
        raise UserError(f"--attach follows one run, and these are {len(plan.points)}: leave it out")
    with as_ctrl_c():
        started = [go_on] if (go_on := handed_out_again(plan)) is not None else launcher.submit(plan)
    if args.detach or not (local or args.attach or handed):
        announce(started, as_json=args.json)
        return 0
    return follow(*started[0], as_json=args.json)


def handed_out_again(plan: launcher.Plan) -> tuple[Run, Job] | None:  # type: ignore[name-defined]  # noqa: F821
    """The run that W&B handed out before and now again, with a job that goes on with it; None if there is none."""
    from runyard.cluster.launch import submit as launcher

    run = plan.handed.begun(plan.config.runs_dir) if plan.handed is not None else None
    if run is None:
        return None
    if sorted(launcher.kept(plan.points[0])) != sorted(run.record.get("overrides", [])):
        print(f"runyard: run {run.id} goes on with the settings that it began with", file=sys.stderr)
    return run, launcher.resume(run, [])


def one_after_the_other(plan: launcher.Plan, args: argparse.Namespace) -> int:  # type: ignore[name-defined]  # noqa: F821
    """A sweep on this machine, each point followed to its end; a point that fails does not stop the rest."""
    from runyard.cluster.launch import submit as launcher
    from runyard.runs.run import new_id

    if args.detach:
        raise UserError("--detach: the points of a sweep on this machine run one after the other; leave it out")
    sweep, worst, ends = new_id(plan.config.name), 0, []
    for point in plan.points:
        with as_ctrl_c():
            started = launcher.start_here(point, sweep)
        code, row = followed(*started, quiet=args.json)
        ends.append(row)
        worst = max(worst, code)
        if worst == INTERRUPTED:  # who stops a sweep means all of it
            break
    print(json.dumps(ends) if args.json else f"compare them: runyard compare --sweep {sweep}")
    return worst


def composed_runs_dir(overrides: list[str], sweep: bool) -> str:
    """Where the runs of this submission would lie."""
    from runyard.config.compose import compose, expand

    return compose(expand(overrides)[0] if sweep else overrides).config.runs_dir


def job_number(reference: str, runs_dir: Callable[[], str]) -> str:
    """What --after waits for: a job's number as it is, of a run in ``runs_dir`` its newest job."""
    from runyard.cluster.monitor.run_status import standing
    from runyard.runs.run import Run
    from runyard.runs.summary import glance

    if re.fullmatch(r"[0-9]{1,11}(_[0-9]{1,11})?", reference):
        return reference
    jobs = standing(glance(Run.locate(reference, runs_dir()))).run.slurm_jobs
    if not jobs:
        raise UserError(f"--after {reference}: that run has no job on SLURM; give a job number or another run")
    return jobs[-1]
