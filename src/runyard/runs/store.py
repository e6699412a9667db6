"""A folder of runs: which there are, and which of them a reference names."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from runyard.errors import UserError

REFERENCE_HINT = "give an id, its beginning, @last, or a path"
NO_RUN_HINT = "create one with `runyard submit`, or name another folder with --runs-dir"
NAMED_SWEEPS = 3  # a refusal names so many, the newest first


def run_dirs(runs_dir: Path | str) -> list[Path]:
    """Return the directories of all runs in ``runs_dir``, by id, which begins with the time of its creation.

    Raises:
        UserError: the folder is there and cannot be read.
    """
    try:
        names = os.listdir(runs_dir)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{runs_dir}: cannot read it ({error.strerror})", "give another --runs-dir") from None
    folders = [os.path.join(runs_dir, name) for name in sorted(names) if not name.startswith(".")]
    return [Path(folder) for folder in folders if os.path.exists(os.path.join(folder, "run.json"))]


def reference_to(run: Path) -> str:
    """Return what names the run in this directory on a command line here: its id in ./runs, else its path, quoted."""
    return run.name if run == Path("runs", run.name).absolute() else shlex.quote(str(run))


def runs_dir_option(runs_dir: Path | str) -> str:
    """Return the option, a space first, by which a command typed here looks in this folder of runs; "" for ./runs."""
    folder = Path(runs_dir)
    return "" if folder.absolute() == Path("runs").absolute() else f" --runs-dir {shlex.quote(str(folder))}"


def matching(reference: str, ids: Sequence[str]) -> list[str]:
    """Return those of ``ids``, oldest first, that a reference names: ``@last``, an id, or the beginning of ids."""
    if reference == "@last":
        return list(ids[-1:])
    return [i for i in ids if i == reference] or [i for i in ids if reference and i.startswith(reference)]


def find_run_dir(reference: str, runs_dir: Path | str = "runs") -> Path:
    """Return the directory of the run that ``reference`` names: a path, an id, the beginning of one, or ``@last``.

    Raises:
        UserError: no run or several runs match.
    """
    if os.path.exists(os.path.join(reference, "run.json")) or "/" in reference:
        return Path(reference)
    if not reference:
        raise UserError("RUN is empty", REFERENCE_HINT)
    folder = Path(runs_dir)
    ids = [path.name for path in run_dirs(folder)]
    matches = matching(reference, ids)
    if not matches:
        if not ids:
            raise UserError(f"no run {reference} in {folder}: there are none there yet", NO_RUN_HINT)
        raise UserError(f"no run {reference} in {folder}: the newest there is {ids[-1]}", REFERENCE_HINT)
    if len(matches) > 1:
        raise UserError(
            f"{reference} matches {len(matches)} runs in {folder}, {matches[0]} and {matches[1]} among them",
            "give more of the id",
        )
    return folder / matches[0]


def unknown_sweep(requested: str, known: Sequence[str], runs_dir: Path | str) -> UserError:
    """Return why ``requested`` names no sweep or several of ``known``, which ``runs_dir`` has, oldest first."""
    if matches := matching(requested, known):
        return UserError(
            f"--sweep {requested}: fits {len(matches)} sweeps, as {matches[0]} and {matches[1]}", "give more of it"
        )
    if not known:
        return UserError(f"--sweep {requested}: no run in {runs_dir} belongs to a sweep", "leave --sweep out")
    return UserError(
        f"--sweep {requested}: no such sweep in {runs_dir}",
        f"the newest there: {', '.join(known[: -NAMED_SWEEPS - 1 : -1])}",
    )
