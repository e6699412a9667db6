"""Notices that the shell of a job's batch script was killed, so that nobody is left to requeue the job.

SLURM then ends the tasks with SIGTERM, as after a person's scancel. A cancelled job's shell outlives its tasks.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass

import psutil

from runyard.installation import SCRIPTS
from runyard.runs.events import StopEvent
from runyard.runs.journal import Journal, read_events
from runyard.runs.run import Run
from runyard.runs.state import JournalState
from runyard.training.stop_signals import StopReason

VARIABLE = "RUNYARD_BATCH_SHELL"  # slurm/begin.sh: the shell's process id and host
KILLED_VARIABLE = "RUNYARD_BATCH_SHELL_KILLED"  # for slurm/requeue.sh


@dataclass(frozen=True)
class BatchShell:
    """The shell of this job's batch script, which ran when this was created."""

    process: psutil.Process

    @classmethod
    def find(cls) -> BatchShell | None:
        """Return the shell, or None if it cannot be seen here: on another node, or outside of this container."""
        pid, _, host = os.environ.get(VARIABLE, "").partition("@")
        if not pid.isdigit() or host != socket.gethostname():
            return None
        try:
            return cls(psutil.Process(int(pid)))
        except psutil.Error:
            return None

    def requeue_if_killed(self, run: Run) -> None:
        """Requeue the job if its tasks were ended because this shell was killed. Only rank 0 does so.

        Its batch script would have; ``slurm/requeue.sh`` decides as it does there.
        """
        from runyard.training.distributed.launcher import from_environment

        if from_environment(os.environ).rank > 0:
            return
        stop = JournalState.of(read_events(run.journal_path)).last
        ended_by_term = isinstance(stop, StopEvent) and stop.cause == StopReason.TERM.journal_text
        if not ended_by_term or (self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE):
            return
        message = f"the shell of the job's batch script was killed (process {self.process.pid})"
        Journal(run.journal_path).write(
            "stop",
            reason="failed",
            message=message,
            node=os.environ.get("SLURMD_NODENAME"),
            user_error=False,
            retry=True,
        )
        script = run.code_path / "slurm" / "requeue.sh"
        command = [str(script if script.exists() else SCRIPTS / "requeue.sh"), sys.executable, str(run.path), "1"]
        subprocess.run(command, env=os.environ | {KILLED_VARIABLE: "1"}, stdin=subprocess.DEVNULL)
