"""What ``submit`` and ``resume`` have in common: show a started job to its end."""

from __future__ import annotations

import json
import sys
from typing import Any

from runyard.errors import FAILED, INTERRUPTED, USER_ERROR


def follow(run: Any, job: Any, *, detach: bool, as_json: bool) -> int:
    """Show a started job to its end and say what comes next."""
    from rich.console import Console

    from cluster.attach import Attached

    console = Console(quiet=as_json, soft_wrap=True)
    console.print(f"run {run.id}, job {job.job_id}, in {run.path}", highlight=False)
    if detach:
        console.print(
            f"follow it:  tail -f {run.path}/metrics.jsonl\nresume it:  runyard resume {run.reference}", highlight=False
        )
        if as_json:
            print(json.dumps({"run": run.id, "job": job.job_id, "path": str(run.path)}))
        return 0
    end = Attached(run, console).follow(job)
    code = {"finished": 0, "interrupted": INTERRUPTED}.get(
        end["reason"], USER_ERROR if end.get("user_error") else FAILED
    )
    if as_json:
        print(
            json.dumps(
                {
                    "run": run.id,
                    "job": job.job_id,
                    "path": str(run.path),
                    "outcome": end["reason"],
                    "message": end["message"],
                }
            )
        )
    elif code == 0:
        print(f"report: {run.path}/report/index.html")
    elif code == INTERRUPTED:
        print(f"stopped, saved. Go on with: runyard resume {run.reference}")
    else:
        print(f"runyard: run {run.id} failed: {end['message']} (logs: {run.path}/slurm)", file=sys.stderr)
    return code
