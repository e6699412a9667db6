"""Follow a run from the terminal that started it: a live bar where there is a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import submitit
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from runyard.run import Run
from runyard.tracking import journal
from runyard.tracking.words import clock, say

POLL_S = 0.5
DEAD_AFTER_POLLS = 20  # a journal may reach a shared disk some seconds after its writer ended


class Attached:
    """What the terminal shows of one job of ``run``, beginning after the journal's rows of earlier jobs."""

    def __init__(self, run: Run, console: Console) -> None:
        self._run, self._console = run, console
        self._seen = len(journal.read(run.journal_path)[0])
        self._bar = Progress(
            TextColumn("[bold]{task.fields[where]}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[pace]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, where="starting", pace="")
        self.last: dict[str, Any] = {}

    def follow(self, job: submitit.Job[str]) -> dict[str, Any]:
        """Show progress until the job ends; return the journal's stop row. Ctrl-C asks the job to save and stop."""
        if not self._console.is_terminal:
            return self._wait(job)
        with self._bar:
            return self._wait(job)

    def _wait(self, job: submitit.Job[str]) -> dict[str, Any]:
        asked, polls_after_end = False, 0
        while True:
            try:
                self._show()
                if job.done():
                    polls_after_end += 1
                    if self.last.get("event") == "stop" or polls_after_end >= DEAD_AFTER_POLLS:
                        return self.last if self.last.get("event") == "stop" else _died(job)
                time.sleep(POLL_S)
            except KeyboardInterrupt:
                if asked:
                    raise
                asked = True
                self._console.print("stopping: saving a checkpoint first (Ctrl-C again to leave it to finish alone)")
                stop(job)

    def _show(self) -> None:
        rows, _ = journal.read(self._run.journal_path)
        for row in rows[self._seen :]:
            self.last = row
            if (line := say(row, self._run.config.epochs)) is not None:
                self._console.print(line, highlight=False)
        self._seen = max(self._seen, len(rows))
        try:
            now = json.loads((self._run.path / "progress.json").read_text())
        except (OSError, ValueError):
            return
        self._bar.update(
            self._task,
            total=now["steps"],
            completed=now["step"],
            where=f"epoch {now['epoch']}/{now['epochs']}",
            pace=f"{now['images_per_s']:,.0f} images/s, {clock(now['eta_s'])} left",
        )


def stop(job: submitit.Job[str]) -> None:
    """Ask a local job to save and stop."""
    os.kill(int(job.job_id), signal.SIGTERM)


def _died(job: submitit.Job[str]) -> dict[str, Any]:
    errors = (job.stderr() or "").strip().splitlines()
    return {
        "event": "stop",
        "reason": "failed",
        "message": errors[-1] if errors else f"job {job.job_id} ended without a word; see {job.paths.stderr}",
    }
