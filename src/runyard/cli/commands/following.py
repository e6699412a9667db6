"""What ``submit`` and ``resume`` have in common: show a started job to its end, or say how to look after it."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

from runyard.errors import FAILED, INTERRUPTED, USER_ERROR


def announce(started: list[tuple[Any, Any]], *, as_json: bool) -> None:
    """Say what was started, as ``[(Run, Job), ...]``, and the commands that come next."""
    rows = [{"run": run.id, "job": job.id, "path": str(run.path)} for run, job in started]
    if as_json:
        print(json.dumps(rows[0] if len(rows) == 1 else rows))
        return
    for run, job in started:
        print(f"run {run.id}, job {job.id}, in {run.path}")
    first = started[0][0]
    if len(rows) > 1:
        sweep = first.record["sweep"]
        print(
            f"sweep {sweep}: {len(rows)} points\nsee how they do:  runyard status\n"
            f"compare them:     runyard compare --sweep {sweep}\nstop one:         runyard cancel RUN"
        )
        return
    print(
        f"see how it does:  runyard status {first.cli_reference}\n"
        f"read its log:     runyard logs -f {first.cli_reference}\n"
        f"save and stop it: runyard cancel {first.cli_reference}"
    )


def follow_job(run: Any, job: Any, *, as_json: bool) -> int:
    """Show a started job to its end and say what comes next, or print run, job and outcome as JSON."""
    exit_code, row = follow_to_end(run, job, quiet=as_json)
    if as_json:
        print(json.dumps(row))
    return exit_code


def follow_to_end(run: Any, job: Any, *, quiet: bool) -> tuple[int, dict[str, Any]]:
    """The exit code of a job that is shown to its end, and run, job and outcome as JSON has them."""
    from rich.console import Console

    from runyard.cluster.monitor.attach import JobFollower, TerminalClosed

    console = Console(quiet=quiet, soft_wrap=True)
    console.print(f"run {run.id}, job {job.id}, in {run.path}", highlight=False)
    try:
        end = JobFollower(run, console).follow(job)
    except KeyboardInterrupt:
        end = {"reason": "left", "message": "it goes on without this terminal"}
    except TerminalClosed:
        end = {"reason": "left", "message": "it goes on without this terminal, which is gone"}
        with contextlib.suppress(OSError):
            print(
                f"runyard: the terminal is gone; run {run.id} goes on. Follow it: runyard logs -f {run.cli_reference}; "
                f"stop it: runyard cancel {run.cli_reference}",
                file=sys.stderr,
                flush=True,
            )
    exit_code = {"finished": 0, "interrupted": INTERRUPTED, "left": INTERRUPTED}.get(
        end["reason"], USER_ERROR if end.get("user_error") else FAILED
    )
    if not quiet and exit_code == 0:
        written = f"report: {run.path}/report/index.html"
        print(written if run.config.report else f"its report: runyard report {run.cli_reference}")
    elif not quiet and end["reason"] == "interrupted":
        print(f"stopped, saved. Go on with: runyard resume {run.cli_reference}")
    elif not quiet and end["reason"] != "left":
        print(f"runyard: run {run.id} failed: {end['message']} (logs: {job.logs})", file=sys.stderr)
    row = {"run": run.id, "job": job.id, "path": str(run.path), "outcome": end["reason"], "message": end["message"]}
    return exit_code, row
