"""Shared by ``submit`` and ``resume``: follow a started job, or print the commands that monitor it."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING

from runyard.errors import ExitCode
from runyard.runs.store import runs_dir_option

if TYPE_CHECKING:
    from runyard.cluster.monitor.attach import JobEnd, JobHandle
    from runyard.runs.run import Run


def announce(started: list[tuple[Run, JobHandle]], *, as_json: bool) -> None:
    """Print the started runs and jobs, and the commands that come next."""
    rows = [{"run": run.id, "job": job.id, "path": str(run.path)} for run, job in started]
    if as_json:
        print(json.dumps(rows[0] if len(rows) == 1 else rows))
        return
    for run, job in started:
        print(f"run {run.id}, job {job.id}, in {run.path}")
    first = started[0][0]
    if len(rows) > 1:
        sweep, option = first.record["sweep"], runs_dir_option(first.path.parent)
        print(
            f"sweep {sweep}: {len(rows)} points\ncheck status:     runyard status{option}\n"
            f"compare them:     runyard compare --sweep {sweep}{option}\nstop one:         runyard cancel RUN{option}"
        )
        return
    print(
        f"check its status: runyard status {first.cli_reference}\n"
        f"read its log:     runyard logs -f {first.cli_reference}\n"
        f"save and stop it: runyard cancel {first.cli_reference}"
    )


def follow_job(run: Run, job: JobHandle, *, as_json: bool, recipe: str = "") -> int:
    """Follow a started job until it ends and print what to do next, or print run, job and outcome as JSON."""
    exit_code, row = follow_to_end(run, job, quiet=as_json, recipe=recipe)
    if as_json:
        print(json.dumps(row))
    return exit_code


def follow_to_end(run: Run, job: JobHandle, *, quiet: bool, recipe: str = "") -> tuple[int, dict[str, str]]:
    """Follow a job until it ends. Returns the exit code and a JSON-ready dict of run, job and outcome.

    Args:
        recipe: A line about what is trained, printed below the run's name.
    """
    from rich.console import Console

    from runyard.cluster.monitor.attach import JobFollower, TerminalClosed

    console = Console(quiet=quiet, soft_wrap=True)
    console.print(f"run {run.id}, job {job.id}, in {run.path}", highlight=False)
    if recipe:
        console.print(recipe, highlight=False, markup=False)
    end: JobEnd | None = None
    try:
        end = JobFollower(run, console).follow(job)
        outcome, message = str(end.state), end.message
    except KeyboardInterrupt:
        outcome, message = "left", "the run continues; detached from this terminal"
    except TerminalClosed:
        outcome, message = "left", "the run continues; this terminal was closed"
        with contextlib.suppress(OSError):
            print(
                f"runyard: the terminal was closed; run {run.id} continues. "
                f"Follow it: runyard logs -f {run.cli_reference}; "
                f"stop it: runyard cancel {run.cli_reference}",
                file=sys.stderr,
                flush=True,
            )
    exit_code = {"finished": 0, "interrupted": ExitCode.INTERRUPTED, "left": ExitCode.INTERRUPTED}.get(
        outcome, ExitCode.USER_ERROR if end is not None and end.user_error else ExitCode.FAILED
    )
    if not quiet and exit_code == 0:
        written = f"report: {run.path}/report/index.html"
        print(written if run.config.report else f"its report: runyard report {run.cli_reference}")
    elif not quiet and outcome == "interrupted":
        print(f"stopped, saved. Resume it with: runyard resume {run.cli_reference}")
    elif not quiet and outcome != "left":
        print(f"runyard: run {run.id} failed: {message} (logs: {job.logs})", file=sys.stderr)
    row = {"run": run.id, "job": job.id, "path": str(run.path), "outcome": outcome, "message": message}
    return exit_code, row
