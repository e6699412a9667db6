"""Follow a run from the terminal that started it: a live bar where there is a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
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
DEAD_AFTER_POLLS = 10  # a journal may reach a shared disk some seconds after its writer ended


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
        self._began = False
        self._end: dict[str, Any] | None = None

    def follow(self, job: submitit.Job[str]) -> dict[str, Any]:
        """Show progress until the job ends; return the journal's stop row, or one in its place.

        Ctrl-C or SIGTERM asks the job to save and stop; a second leaves it to do so alone.
        """
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with self._bar if self._console.is_terminal else contextlib.nullcontext():
                return self._wait(job)
        finally:
            signal.signal(signal.SIGTERM, before)

    def _wait(self, job: submitit.Job[str]) -> dict[str, Any]:
        asked, polls_after_end = False, 0
        while True:
            try:
                over = job.done()
                self._show()
                if over and self._end is not None:
                    return self._end
                if over and asked and not self._began:
                    return {"event": "stop", "reason": "interrupted", "message": "before the first step"}
                if over and polls_after_end == DEAD_AFTER_POLLS:
                    return _died(job)
                polls_after_end += over
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
            self._began |= row["event"] == "start"
            self._end = row if row["event"] == "stop" else self._end
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
    if not job.done():
        os.kill(int(job.job_id), signal.SIGTERM)


def _died(job: submitit.Job[str]) -> dict[str, Any]:
    """What the tasks' logs say of an end that rank 0 could not write down."""
    logs = sorted(job.paths.folder.glob(f"{job.job_id}_*_log.err"))
    said = [line for log in logs for line in log.read_text(errors="replace").splitlines()[-1:]]
    ours = [line.removeprefix("runyard: ") for line in said if line.startswith("runyard: ")]
    return {
        "event": "stop",
        "reason": "failed",
        "message": (ours or said or ["the job ended without a word: killed, perhaps for want of memory"])[0],
    }
