"""Tells people that a run has ended: its webhook and command, and W&B of a run that was given up.

``python -m runyard.cluster.job.alert RUN`` sends what the server does not have yet, as `runyard sync` does, the alert
included. It is a separate process: whatever W&B's client does there, the batch script waits no longer than
``ALERT_TIMEOUT_S`` and keeps its exit code.
"""

from __future__ import annotations

import subprocess
import sys

from runyard.errors import ExitCode, UserError
from runyard.runs.run import Run
from runyard.tracking.notify import notify_end

ALERT_TIMEOUT_S = 60.0  # the job holds its nodes meanwhile


def tell_end(run: Run, message: str, *, given_up: bool) -> None:
    """Tell that ``run`` has ended and its job will not be requeued. ``message`` is why, if its journal does not say."""
    notify_end(run, message)
    if given_up:
        send_alert(run)


def send_alert(run: Run) -> None:
    """Send the alert of ``run``, and print the outcome in one line; print nothing if the run does not use W&B."""
    if run.config.tracking.mode not in ("online", "auto"):
        return
    command = [sys.executable, "-m", "runyard.cluster.job.alert", str(run.path)]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=ALERT_TIMEOUT_S)
        output = (completed.stdout if completed.returncode == 0 else completed.stderr).strip().splitlines()[-1:]
        message = "".join(output) if completed.returncode in (0, ExitCode.USER_ERROR) else _not_sent_text(run, *output)
    except subprocess.TimeoutExpired:
        message = _not_sent_text(run, f"no answer within {ALERT_TIMEOUT_S:g} s")
    except OSError as error:
        message = _not_sent_text(run, str(error))
    if message:
        print(f"runyard: {message}", file=sys.stderr, flush=True)


def sync_and_report(run_dir: str) -> str:
    """Send the alert from this process. Returns the message to print: "" if tracking.mode=auto cannot reach W&B.

    Raises:
        UserError: W&B did not take it.
    """
    from runyard.tracking.wandb import sync
    from runyard.tracking.wandb.connection import connection_problem

    run = Run.open(run_dir)
    if (problem := connection_problem()) is not None:
        return "" if run.config.tracking.mode == "auto" else _not_sent_text(run, problem)
    try:
        plan = sync.plan_sync(run)
        url = (
            None if plan.is_complete else sync.send_missing(plan, progress=lambda sent: None, warn=lambda message: None)
        )
        return f"W&B alert sent: {url}" if url else "W&B has the alert already"
    except UserError as error:
        raise UserError(*_not_sent(run, str(error))) from None


def _not_sent(run: Run, reason: str) -> tuple[str, str]:
    """Return the problem and what to do."""
    return f"W&B alert not sent ({reason})", f"try: runyard sync {run.cli_reference}"


def _not_sent_text(run: Run, reason: str = "no reason given") -> str:
    return "; ".join(_not_sent(run, reason))


if __name__ == "__main__":
    try:
        print(sync_and_report(sys.argv[1]))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(ExitCode.USER_ERROR)
