"""The table of runs: for each a line of figures and a line of text below it; and the same as raw values."""

from __future__ import annotations

import contextlib
import dataclasses
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from runyard.cluster.monitor.run_status import RunStatus, derive_status, query_slurm, unique_prefixes
from runyard.errors import UserError
from runyard.printable import printable
from runyard.runs.narrative import format_duration
from runyard.runs.state import RunState
from runyard.runs.store import NO_RUN_HINT, matching, run_dirs, runs_dir_option, unknown_sweep
from runyard.runs.summary import RunSummary

TABLE_REFRESH_S = 2.0
SLURM_TIMEOUT_S = 6.0  # a person waits for the table, which without SLURM still says most
TABLE_QUEUE_POLL_S = 15.0  # one SLURM controller serves many users
WIDE_COLUMNS = 100  # terminal columns from which names get a column of their own
MAX_RUN_NAME = 24
STYLES = {RunState.WAITING: "yellow", RunState.STARTING: "yellow", RunState.RUNNING: "green",
          RunState.STOPPING: "green", RunState.FAILED: "red", RunState.KILLED: "red", RunState.UNKNOWN: "magenta",
          RunState.INTERRUPTED: "cyan", RunState.CANCELLED: "cyan", RunState.PRUNED: "cyan"}  # fmt: skip
COLUMN_HEADINGS = (("", "run"), ("", "name"), ("", "state"), ("step", "/total"), ("top-1 %", "last/best"),
                   ("images", "/s"), ("data", "wait"), ("re-", "starts"), ("", "nodes"), ("time", "left"))  # fmt: skip
OPTIONAL_COLUMNS = (6,)  # data wait; dropped if long ids leave no room for the time left
LEFT_ALIGNED_COLUMNS = 3  # the columns of text; the others are figures


class StatusView:
    """The selected runs and their status at the last refresh.

    Args:
        folder: The folder that holds the runs.
        named: The directories of the selected runs; if empty, all in ``folder``.
        sweep: Select only the points of this sweep, by its id, a prefix of it, or ``@last``.

    Attributes:
        statuses: The status of each run, newest first, or in the order of ``named``.
        unreadable: A line for each run that could not be read.

    Raises:
        UserError: there is no such run.
    """

    def __init__(self, folder: Path, named: Sequence[Path] = (), sweep: str | None = None) -> None:
        self._folder, self._named, self._sweep = folder, named, sweep
        self.refresh()

    def refresh(self) -> None:
        """Read all runs and ask SLURM about them."""
        self.unreadable: list[str] = []
        runs = [RunSummary(path) for path in self._named] or self._all_runs()
        self._answers = query_slurm(runs, timeout_s=SLURM_TIMEOUT_S)
        self.statuses = []
        for run in runs:
            try:
                self.statuses.append(derive_status(run, *self._answers, time.time()))
                _cells(self.statuses[-1], run.id, brief=False)
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
                self.statuses = [s for s in self.statuses if s.run is not run]
                self.unreadable.append(
                    f"{run.path}: damaged: its journal or record holds impossible values ({error!r})"
                )

    def refresh_files(self) -> None:
        """Read the active runs again; SLURM's answers are those of the last refresh."""
        previous = self.statuses
        self.statuses = []
        for s in previous:
            with contextlib.suppress(UserError):  # it was deleted; if it was named, the next refresh reports it
                if s.active:
                    s.run.refresh()
                self.statuses.append(derive_status(s.run, *self._answers, time.time()) if s.active else s)

    def table(self, width: int, lines: int | None) -> Text:
        """Return the table of the runs that fit ``lines`` terminal lines (None: all), with a note on the others."""
        displayed = fit_to_lines(self.statuses, None if self._named else lines)
        text = status_table(displayed, [path.name for path in run_dirs(self._folder)], width)
        if len(displayed) < len(self.statuses):
            command = f"runyard status --all{runs_dir_option(self._folder)}"
            text.append(f"\n{len(self.statuses) - len(displayed)} older ones: {command}", "dim")
        return text

    @property
    def problems(self) -> list[str]:
        """The distinct reasons why some states are unknown."""
        return list(dict.fromkeys(s.error for s in self.statuses if s.error))

    def _all_runs(self) -> list[RunSummary]:
        runs = []
        for path in reversed(run_dirs(self._folder)):
            try:
                runs.append(RunSummary(path))
            except UserError as error:
                self.unreadable.append(str(error))
        if self._sweep is not None:
            old_first = sorted(runs, key=lambda run: run.record["created"])
            ids = list(dict.fromkeys(sweep for run in old_first if (sweep := run.record["sweep"])))
            matches = matching(self._sweep, ids)
            if len(matches) != 1:
                raise unknown_sweep(self._sweep, ids, self._folder)
            return [run for run in runs if run.record["sweep"] == matches[0]]
        if not runs and not self.unreadable:
            raise UserError(f"no run in {self._folder}", NO_RUN_HINT)
        return runs


def as_json(status: RunStatus) -> dict[str, object]:
    """Return one run as a dict for JSON: fractions, seconds, None for what is unknown."""
    run, job = status.run, status.job
    return {
        "run": run.id,
        "name": run.record["name"],
        "path": str(run.path),
        "sweep": run.record["sweep"],
        "state": status.state,
        "reason": status.reason,
        "message": status.message,
        "job": run.job.get("id"),
        "slurm_state": job.state if job else None,
        "time_left_s": job.left_s if job and job.running else None,
        "nodelist": list(status.nodes),
        **dataclasses.asdict(status.figures),
    }


def status_table(statuses: Sequence[RunStatus], among: Sequence[str], width: int) -> Text:
    """Return ``statuses`` as a table of ``width`` columns. Ids are cut to prefixes that are unique in ``among``."""
    short = unique_prefixes([s.run.id for s in statuses], among)
    wide = width >= WIDE_COLUMNS
    columns = [k for k in range(len(COLUMN_HEADINGS)) if wide or k != 1]
    for brief, dropped in ((False, ()), (True, ()), (True, OPTIONAL_COLUMNS)):
        columns = [k for k in columns if k not in dropped]
        rows = [tuple(map(printable, _cells(s, short[s.run.id], brief))) for s in statuses]
        widths = [
            max(len(text) for text in (*COLUMN_HEADINGS[k], *(row[k] for row in rows)))
            for k in range(len(COLUMN_HEADINGS))
        ]
        table_width = sum(widths[k] for k in columns) + len(columns) - 1
        if table_width <= width:
            break
    gap = "  " if table_width + len(columns) - 1 <= width else " "

    def line(cells: Sequence[str], style: str = "") -> Text:
        parts = [cells[k].ljust(widths[k]) if k < LEFT_ALIGNED_COLUMNS else cells[k].rjust(widths[k]) for k in columns]
        text = Text(gap.join(parts).rstrip())
        state = len(gap.join(parts[: columns.index(2)])) + len(gap)
        text.stylize("bold", 0, widths[0])
        text.stylize(style, state, state + widths[2])
        text.truncate(width, overflow="ellipsis")
        return text

    lines = [Text(line([head[k] for head in COLUMN_HEADINGS]).plain, "dim") for k in (0, 1)]
    for status, row in zip(statuses, rows, strict=True):
        lines.append(line(row, STYLES.get(status.state, "")))
        name = "" if wide else f"{status.run.record['name']}: "
        if not wide or status.message != status.state:
            lines += [Text(f"  {part}", "dim") for part in _wrapped(printable(name + status.message), width - 2)]
    return Text("\n").join(lines)


def _cells(status: RunStatus, run: str, brief: bool) -> tuple[str, ...]:
    n = status.figures
    top1 = [value for value in (n.top1_last, n.top1_best) if value is not None]
    name = status.run.record["name"]
    progress = f"{100 * n.step / n.steps:.0f} %" if n.steps and n.step is not None and brief else None
    return (
        run,
        name if len(name) <= MAX_RUN_NAME else f"{name[: MAX_RUN_NAME - 1]}…",
        status.state,
        progress or _or_dash(n.step, "{}") + (f"/{n.steps}" if n.steps else ""),
        "/".join(f"{100 * value:.1f}" for value in top1) if len(top1) == 2 else "–",
        _or_dash(n.images_per_s, "{:,.0f}"),
        _or_dash(n.data_wait_pct, "{:.0f} %"),
        str(n.restarts),
        _or_dash(n.nodes, "{}"),
        format_duration(n.eta_s) if n.eta_s is not None else "–",
    )


def _or_dash(value: float | None, template: str) -> str:
    return "–" if value is None else template.format(value)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20), break_long_words=False, break_on_hyphens=False)


def fit_to_lines(statuses: Sequence[RunStatus], lines: int | None) -> list[RunStatus]:
    """Return the runs that fit ``lines``, two lines each: active runs first, then the newest others; all if None."""
    if lines is None:
        return list(statuses)
    max_runs = max(1, (lines - 4) // 2)
    active = [s for s in statuses if s.active][:max_runs]
    others = [s for s in statuses if not s.active][: max_runs - len(active)]
    return [s for s in statuses if s in active or s in others]


def watch(view: StatusView, console: Console, lines: int | None) -> None:
    """Refresh and show ``view`` until Ctrl-C; without a terminal, print one table below the other."""
    if not console.is_terminal:
        while True:
            console.print(view.table(console.width, lines), "")
            time.sleep(TABLE_QUEUE_POLL_S)
            view.refresh()
    # Through a redirected stdout even Rich's own control characters would be made printable.
    with Live(
        console=console, auto_refresh=False, vertical_overflow="crop", redirect_stdout=False, redirect_stderr=False
    ) as live:
        last_query = time.monotonic()
        while True:
            live.update(view.table(console.width, lines), refresh=True)
            time.sleep(TABLE_REFRESH_S)
            if time.monotonic() - last_query < TABLE_QUEUE_POLL_S:
                view.refresh_files()
            else:
                view.refresh()
                last_query = time.monotonic()
