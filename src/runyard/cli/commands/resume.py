"""``runyard resume``: resume a run from its newest checkpoint, or all failed runs of a sweep."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from runyard.cli.commands.following import announce, follow_job, follow_to_end
from runyard.cli.parser import add_following, add_overrides, add_runs_dir
from runyard.errors import ExitCode, ExplainedError, UserError
from runyard.training.stop_signals import sigterm_as_interrupt

HELP = "resume a run from its newest checkpoint, also on another cluster or other nodes"
EXAMPLE = (
    "runyard resume @last cluster=slurm cluster.nodes=2    (all that failed: runyard resume --failed --sweep @last)"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", nargs="?", help="a path, an id or its beginning, or @last")
    add_runs_dir(parser)
    add_overrides(parser)
    parser.add_argument(
        "--failed", action="store_true", help="with --sweep: all of its runs that failed or were killed"
    )
    parser.add_argument("--sweep", metavar="ID", help="with --failed: the sweep, by its id or its beginning, or @last")
    parser.add_argument("--from-scratch", action="store_true", help="restart from step 0 if no checkpoint is left")
    parser.add_argument("--trust", action="store_true", help="allow running code that another user owns")
    add_following(parser)


def run(args: argparse.Namespace) -> int:
    from runyard.cluster.launch import submit as launcher
    from runyard.runs.run import Run

    words = [*([] if args.run is None else [args.run]), *args.overrides]  # argparse cannot tell them apart
    if args.failed or args.sweep is not None:
        return resume_failed(args, words)
    if not words:
        raise UserError("RUN is missing", f"example: {EXAMPLE}")
    run = Run.find(words[0], args.runs_dir)
    with sigterm_as_interrupt():
        started = run, launcher.resume(run, words[1:], from_scratch=args.from_scratch, trusted=args.trust)
    if args.detach or (run.config.cluster.launcher == "slurm" and not args.attach):
        announce([started], as_json=args.json)
        return 0
    return follow_job(*started, as_json=args.json)


def resume_failed(args: argparse.Namespace, overrides: list[str]) -> int:
    """Resume each run of a sweep that failed or was killed: those on SLURM at once, those here one after the other.

    One that cannot be resumed does not keep the others from it.
    """
    from runyard.cluster.launch import submit as launcher
    from runyard.cluster.monitor.status import StatusView
    from runyard.runs.run import Run

    if not args.failed or args.sweep is None:
        raise UserError("--failed and --sweep: resume takes both or neither", f"example: {EXAMPLE}")
    if odd := next((word for word in overrides if "=" not in word), None):
        raise UserError(f"{odd} and --failed exclude each other", "name a run, or give --failed --sweep ID")
    if args.attach:
        raise UserError("--attach follows a single run", "leave it out; see: runyard status -w")
    view = StatusView(Path(args.runs_dir), sweep=args.sweep)
    for problem in (*view.unreadable, *view.problems):
        print(f"runyard: {problem}", file=sys.stderr)
    failed = [status.run.path for status in reversed(view.statuses) if status.state in ("failed", "killed")]
    exit_code, started, rows = ExitCode.USER_ERROR if view.problems else ExitCode.DONE, [], []
    for path in failed:
        try:
            run = Run.open(path)
            with sigterm_as_interrupt():
                job = launcher.resume(run, overrides, from_scratch=args.from_scratch, trusted=args.trust)
        except ExplainedError as error:
            print(f"runyard: {error}", file=sys.stderr)
            exit_code = ExitCode.USER_ERROR
            continue
        if run.config.cluster.launcher == "slurm" or args.detach:
            started.append((run, job))
            rows.append({"run": run.id, "job": job.id, "path": str(run.path)})
            continue
        code, row = follow_to_end(run, job, quiet=args.json)
        rows.append(row)
        exit_code = ExitCode(max(exit_code, code))
        if code == ExitCode.INTERRUPTED:  # Ctrl-C stops them all
            break
    if args.json:
        print(json.dumps(rows))
    elif started:
        announce(started, as_json=False)
    elif not failed and not view.problems:
        print(f"no run of sweep {args.sweep} has failed")
    return exit_code
