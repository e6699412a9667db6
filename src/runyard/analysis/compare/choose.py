"""Selects the runs to compare, and notes which of them are incomplete or damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runyard.analysis.compare import where
from runyard.errors import UserError
from runyard.files import read_regular
from runyard.runs.record import read_record
from runyard.runs.results.history import RunHistory
from runyard.runs.results.reading import load_history
from runyard.runs.store import NO_RUN_HINT, find_run_dir, matching, run_dirs, unknown_sweep

MAX_NAMED_RUNS = 3  # a note names so many runs or lines and counts the others


@dataclass(frozen=True)
class RunSelection:
    """The selected runs and what the user should know about them.

    Attributes:
        runs: The runs in order of creation.
        notes: A line for each thing that was skipped or is damaged.
        sweep: The id of the sweep, if one was requested.
        refused_trials: A reason for each trial of the sweep that did not become a run.
    """

    runs: list[RunHistory]
    notes: list[str]
    sweep: str | None = None
    refused_trials: tuple[str, ...] = ()


def select_runs(
    references: Sequence[str],
    *,
    everything: bool = False,
    tag: str | None = None,
    sweep: str | None = None,
    conditions: Sequence[str] = (),
    runs_dir: Path | str = "runs",
) -> RunSelection:
    """Select the named runs, or all of ``runs_dir``, that have the tag, belong to the sweep and meet the conditions.

    Raises:
        UserError: a reference matches no run, or no run is left.
    """
    if not references and not everything and tag is None and sweep is None:
        raise UserError("no runs were named", "give RUN..., --tag T, --sweep S or --all")
    if references and everything:
        raise UserError(f"--all and {references[0]}", "give runs, or --all, not both")
    notes: list[str] = []
    directories = [find_run_dir(reference, runs_dir) for reference in references] if references else run_dirs(runs_dir)
    if not directories:
        if reason := _without_runs(sweep, runs_dir):
            raise UserError(reason)
        raise UserError(f"no run in {runs_dir}", NO_RUN_HINT)
    if sweep is not None:
        sweep, directories = _of_sweep(sweep, directories, runs_dir, notes)
    runs = _loaded(directories, notes)
    if not runs:
        first = notes[0].removeprefix("skipped ")
        raise UserError(first if len(notes) == 1 else f"none of {len(directories)} runs can be read: {first}")
    if tag is not None:
        runs = _of_tag(tag, runs, runs_dir)
    parsed = where.parse_conditions(conditions, runs)
    selected = [run for run in runs if all(condition.matches(run) for condition in parsed)]
    if not selected:
        raise UserError(f"--where {' and '.join(conditions)}: none of {len(runs)} runs fits", "leave a condition out")
    if not any(run.starts for run in selected):
        raise UserError(
            f"{_named(selected)}: without metrics, {'it has' if len(selected) == 1 else 'they have'} not started",
            "compare again after the first epoch",
        )
    refused = tuple(
        reason for folder in _search_dirs(runs_dir) if folder.name == sweep for reason in _refused_trials(folder, notes)
    )
    return RunSelection(
        sorted(selected, key=lambda run: (run.created, run.id)), notes + _notes(selected), sweep, refused
    )


def _loaded(directories: Iterable[Path], notes: list[str]) -> list[RunHistory]:
    runs: dict[str, RunHistory] = {}
    for directory in directories:
        if (path := os.path.realpath(directory)) not in runs:
            try:
                runs[path] = load_history(directory)
            except UserError as error:
                notes.append(f"skipped {error}")
    return list(runs.values())


def _of_sweep(
    requested: str, directories: list[Path], runs_dir: Path | str, notes: list[str]
) -> tuple[str, list[Path]]:
    members: dict[str, list[Path]] = {}
    created: dict[str, float] = {}  # of the newest run, since a sweep's name need not contain a time
    for directory in directories:
        try:
            record = read_record(directory)
        except UserError as error:
            notes.append(f"skipped {error}")
            continue
        if (name := record["sweep"]) is not None:
            members.setdefault(name, []).append(directory)
            created[name] = max(created.get(name, 0.0), record["created"])
    known = sorted(members, key=lambda name: (created[name], name))
    matches = matching(requested, known)
    if len(matches) == 1:
        return matches[0], members[matches[0]]
    if not matches and (reason := _without_runs(requested, runs_dir)):
        raise UserError(reason)
    raise unknown_sweep(requested, known, runs_dir)


def _without_runs(requested: str | None, runs_dir: Path | str) -> str:
    """Return why the requested search has no run if all of its trials were refused, else an empty string."""
    reasons_by_search = {
        folder.name: reasons
        for folder in _search_dirs(runs_dir)
        if requested
        and (requested == "@last" or folder.name.startswith(requested))
        and (reasons := _refused_trials(folder, []))
    }
    name = (
        requested
        if requested in reasons_by_search
        else next(iter(reasons_by_search))
        if len(reasons_by_search) == 1
        else None
    )
    if name is None:
        return ""
    count = len(reasons_by_search[name])
    return f"--sweep {name}: none of its {count} trial{'s' * (count > 1)} became a run: {reasons_by_search[name][0]}"


def _search_dirs(runs_dir: Path | str) -> list[Path]:
    """Return the directories of searches with refused trials; each user's searches are in a separate directory."""
    return [path.parent for path in sorted(Path(runs_dir).glob(".sweeps*/*/refused.jsonl"))]


def _refused_trials(folder: Path, notes: list[str]) -> tuple[str, ...]:
    """Return a reason for each trial that became no run, as recorded by ``runyard.cluster.search.sweep``."""
    try:
        lines = read_regular(folder / "refused.jsonl").splitlines()
    except OSError:
        return ()
    reasons: dict[object, str] = {}
    damaged = 0
    for line in lines:
        try:
            row = json.loads(line)
            reasons[row["trial"]] = str(row["why"])
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += 1
    if damaged:
        notes.append(f"sweep {folder.name}: {damaged} broken line{'s' * (damaged > 1)} in refused.jsonl, skipped")
    return tuple(reasons.values())


def _of_tag(tag: str, runs: list[RunHistory], runs_dir: Path | str) -> list[RunHistory]:
    tagged = [run for run in runs if tag in run.tags]
    if not tagged:
        tags = sorted({t for run in runs for t in run.tags})
        hint = f"tags there: {', '.join(tags[:9])}" if tags else "no run there has a tag; set tracking.tags=[...]"
        raise UserError(f"--tag {tag}: no run in {runs_dir} has it", hint)
    return tagged


def _notes(runs: list[RunHistory]) -> list[str]:
    """Return what a reader should know before trusting the numbers, one line each."""
    notes = []
    for run in runs:
        if damaged_lines := run.broken_lines[: -1 if run.last_line_truncated else None]:
            lines = ", ".join(map(str, damaged_lines[:MAX_NAMED_RUNS])) + (
                ", ..." if len(damaged_lines) > MAX_NAMED_RUNS else ""
            )
            many = len(damaged_lines) > 1
            notes.append(
                f"run {run.id}: {len(damaged_lines)} broken line{'s' * many} in metrics.jsonl ({lines}), skipped"
            )
        if run.last_line_truncated:
            notes.append(f"run {run.id}: the last line of metrics.jsonl is half-written, skipped")
    if empty := [run for run in runs if not len(run.series["epoch"])]:
        notes.append(f"without metrics so far: {_named(empty)}")
    if damaged := [r for r in runs if (r.directory / "predictions.npz").exists() and r.predictions() is None]:
        notes.append(f"predictions.npz cannot be read: {_named(damaged)}")
    if edited := [run for run in runs if run.edited]:
        notes.append(f"config.yaml was edited after the run was created: {_named(edited)}")
    return notes


def _named(runs: Sequence[RunHistory]) -> str:
    ids = [f"{run.id} ({run.state})" for run in runs[:MAX_NAMED_RUNS]]
    more = f" and {len(runs) - MAX_NAMED_RUNS} more" if len(runs) > MAX_NAMED_RUNS else ""
    return f"run{'s' * (len(runs) > 1)} {', '.join(ids)}{more}"
