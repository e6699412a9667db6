"""``runyard submit``: create a run from overrides and submit its job; with -m, a grid of runs and a job array."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from runyard.cli.commands.following import announce, follow_job, follow_to_end
from runyard.cli.parser import add_following, add_overrides
from runyard.errors import ExitCode, UserError
from runyard.training.stop_signals import sigterm_as_interrupt

if TYPE_CHECKING:
    from runyard.cluster.launch.submit import SubmissionPlan
    from runyard.cluster.monitor.attach import JobHandle
    from runyard.runs.run import Run

HELP = "create a run and start it: on this machine (attached until it ends) or as a SLURM job"
DEPENDENCIES = ("afterok", "afterany", "afternotok")
EXAMPLE = "runyard submit experiment=paper cluster=slurm cluster.nodes=2 cluster.gpus_per_node=4"


def arguments(parser: argparse.ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="run a grid over comma-separated values: seed=0,1,2"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the batch script and the cost; submit nothing")
    parser.add_argument("--ask", action="store_true", help="print when SLURM would start it, also in other sizes")
    parser.add_argument(
        "--after",
        metavar="RUN|JOB",
        help="start after this run or job has succeeded; afterany:RUN|JOB has ended, afternotok:RUN|JOB has failed",
    )
    parser.add_argument(
        "--wait", action="store_true", help="wait while SLURM is away or has as many jobs of yours as it allows"
    )
    parser.add_argument("--cfg", choices=["job"], help="print the composed configuration and submit nothing")
    add_following(parser)


def run(args: argparse.Namespace) -> int:
    from runyard.cluster.launch import submit as launcher
    from runyard.cluster.launch.dry_run import print_plan
    from runyard.cluster.launch.waiting import Waiting
    from runyard.config.compose import compose
    from runyard.tracking.wandb.agent import sweep_assignment

    overrides = args.overrides
    if args.cfg:
        import yaml

        if args.json or args.multirun:
            raise UserError(f"--cfg {args.cfg} prints one configuration, as YAML", "leave out --json and -m")
        print(yaml.safe_dump(compose(overrides).values, sort_keys=False), end="")
        return 0
    after = (
        None
        if args.after is None
        else dependency_job_id(args.after, lambda: composed_runs_dir(overrides, args.multirun))
    )
    assignment = sweep_assignment(os.environ)
    if assignment is not None:
        if args.multirun or args.detach:
            raise UserError("the W&B agent assigns one run and waits until it ends", "leave out -m and --detach")
        overrides = [*overrides, *assignment.overrides(overrides, compose(overrides).config)]
    if assignment is None and (task := os.environ.get("SLURM_PROCID", "0")) != "0":
        message = "each task of this step submits a run of its own; for one run, submit in `srun --pty` or with -n1"
        print(f"runyard: warning: SLURM_PROCID={task}: {message}", file=sys.stderr)
    if args.ask and args.multirun:
        raise UserError("--ask: asks about one run", "leave out -m")
    waiting = Waiting(print_event) if args.wait and not (args.dry_run or args.ask) else None

    def make_plan() -> SubmissionPlan:
        return launcher.plan_submission(
            overrides, sweep=args.multirun, after=after, dry_run=args.dry_run or args.ask, assignment=assignment
        )

    plan = make_plan() if waiting is None else waiting.until_accepted(make_plan)
    if args.ask:
        print_options(plan, as_json=args.json)
        return 0
    if args.dry_run:
        print_plan(plan, as_json=args.json)
        return 0
    local = plan.config.cluster.launcher == "local"
    if local and args.wait:
        raise UserError("--wait: cluster=local has no queue to wait for", "leave it out")
    if local and len(plan.configs) > 1:
        return run_sequentially(plan, args)
    if args.attach and len(plan.configs) > 1:
        raise UserError(f"--attach follows a single run, and this submission has {len(plan.configs)}", "leave it out")
    with sigterm_as_interrupt():
        started = [resumed] if (resumed := resume_assignment(plan)) is not None else launcher.submit(plan, waiting)
    recipe = describe_recipe(plan, args)
    if args.detach or not (local or args.attach or assignment):
        announce(started, as_json=args.json)
        if recipe:
            print(recipe)
        if plan.expected_start is not None and not args.json:
            print(f"expected start:   {plan.expected_start.text}, by SLURM's estimate")
        return 0
    return follow_job(*started[0], as_json=args.json, recipe=recipe)


def print_event(line: str) -> None:
    print(f"runyard: {line}", file=sys.stderr, flush=True)


def describe_recipe(plan: SubmissionPlan, args: argparse.Namespace) -> str:
    """Return a line about what is trained, "" with --json. Prints which recipe ``experiment=auto`` took."""
    from runyard.cluster.launch.dry_run import differences
    from runyard.config.fields import format_literal

    if args.json:
        return ""
    point = plan.configs[0]
    if point.choice:
        print_event(point.choice)
    settings = ", ".join(f"{name}={format_literal(value)}" for name, (_, value) in differences(point).items())
    first = "the first point " if len(plan.configs) > 1 else ""
    return f"{first}differs from the defaults (`runyard settings`): {settings or 'nothing'}"


def print_options(plan: SubmissionPlan, *, as_json: bool) -> None:
    """Print when SLURM would start the plan and its alternatives, and submit nothing."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from runyard.cluster.launch.ask import ask
    from runyard.printable import printable

    options = ask(plan)
    if as_json:
        print(json.dumps([option.row() for option in options], indent=1))
        return
    table = Table("change", "nodes", "limit", "GPU-hours", "SLURM would start it", box=None, pad_edge=False)
    for option in options:
        told = "it does not say when" if option.estimate is None else option.estimate.text
        answer = f"never: {option.problem}" if option.problem is not None else told
        cluster = option.config.cluster
        size = (str(cluster.nodes), f"{cluster.timeout_min} min", f"{option.gpu_hours:g}")
        table.add_row(escape(option.change) or "as asked", *size, escape(printable(answer)))
    Console(highlight=False).print(table)
    print("nothing was submitted (--ask)")


def resume_assignment(plan: SubmissionPlan) -> tuple[Run, JobHandle] | None:
    """Resume the run that the W&B agent has assigned again. Returns the run and its new job, or None."""
    from runyard.cluster.launch import submit as launcher

    run = plan.handed.existing_run(plan.config.runs_dir) if plan.handed is not None else None
    if run is None:
        return None
    if sorted(launcher.persistent_overrides(plan.configs[0])) != sorted(run.record["overrides"]):
        print(f"runyard: run {run.id} continues with its original settings", file=sys.stderr)
    return run, launcher.resume(run, [])


def run_sequentially(plan: SubmissionPlan, args: argparse.Namespace) -> int:
    """Run the points of a sweep one after another on this machine. A failed point does not stop the others."""
    from runyard.cluster.launch import submit as launcher
    from runyard.runs.run import new_id
    from runyard.runs.store import runs_dir_option

    if args.detach:
        raise UserError("--detach: the points of a sweep on this machine run one after the other", "leave it out")
    sweep, exit_code, rows = new_id(plan.config.name), 0, []
    for point in plan.configs:
        with sigterm_as_interrupt():
            started = launcher.start_local(point, sweep)
        recipe = describe_recipe(plan, args) if point is plan.configs[0] else ""
        code, row = follow_to_end(*started, quiet=args.json, recipe=recipe)
        rows.append(row)
        exit_code = max(exit_code, code)
        if exit_code == ExitCode.INTERRUPTED:  # Ctrl-C stops the whole sweep
            break
    option = runs_dir_option(plan.config.runs_dir)
    print(json.dumps(rows) if args.json else f"compare them: runyard compare --sweep {sweep}{option}")
    return exit_code


def composed_runs_dir(overrides: list[str], sweep: bool) -> str:
    """Return the ``runs_dir`` of the configuration that these overrides make."""
    from runyard.config.compose import compose, expand

    return compose(expand(overrides)[0] if sweep else overrides).config.runs_dir


def dependency_job_id(reference: str, runs_dir: Callable[[], str]) -> str:
    """Return the job that --after waits for, as ``SbatchJob`` takes it: the given one, or the given run's newest."""
    from runyard.cluster.job.chain import final_stop
    from runyard.cluster.monitor.run_status import run_status
    from runyard.runs.store import find_run_dir
    from runyard.runs.summary import RunSummary

    kind, colon, rest = reference.partition(":")
    if colon and kind in DEPENDENCIES:
        prefix, reference = ("" if kind == "afterok" else f"{kind}:"), rest
    else:
        prefix = ""
    if re.fullmatch(r"[0-9]{1,11}(_[0-9]{1,11})?", reference):
        return prefix + reference
    run = run_status(RunSummary(find_run_dir(reference, runs_dir()))).run
    if not run.slurm_jobs:
        raise UserError(f"--after {reference}: that run has no job on SLURM", "give a job number or another run")
    newest = run.slurm_jobs[-1]
    if len(run.chain) > 1:  # of a chain all jobs, or once the run is over the last that ran: those left are cancelled
        newest = newest.partition("_")[0]
        if final_stop(run) is not None and run.starts and run.starts[-1].job_id is not None:
            newest = run.starts[-1].job_id
    return prefix + newest
