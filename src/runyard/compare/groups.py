"""Which runs are repetitions of one another, and in what the others differ."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from runyard.compare.reading import matters
from runyard.compare.runs import History


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ only in seed, by rising seed; a row of the table.

    Attributes:
        label: Its name in tables, legends and messages: the experiment's name, with a letter where several groups share
            one ("starter-a"), or the run's id with ``by_run``. Unique among the groups made together.
        runs: At least one.
    """

    label: str
    runs: tuple[History, ...]

    @property
    def n(self) -> int:
        return len(self.runs)

    @property
    def settings(self) -> dict[str, Any]:
        """Of its first run; they are all alike, but for the seed and for where things lie."""
        return self.runs[0].settings

    @property
    def name(self) -> str:
        return self.runs[0].name

    def values(self, measure: str) -> np.ndarray:
        """float64 [n]: an attribute of each run (last, best, gpu_hours, ...), NaN where there is none."""
        return np.array([getattr(run, measure) for run in self.runs], np.float64)


def group(runs: Iterable[History], *, by_run: bool = False) -> list[Group]:
    """The groups in order of their first runs. With ``by_run`` each run is its own.

    Runs of one configuration on other test images are not repetitions: they are told apart by the data's identity.
    """
    found: dict[tuple[str, ...], list[History]] = {}
    for run in runs:
        key = (str(run.directory),) if by_run else (run.settings_sha256, run.test_sha256 or "")
        found.setdefault(key, []).append(run)
    made = list(found.values())
    if not by_run and len({run.settings_sha256 for run in (m[0] for m in made)}) < len(made):
        made = _with_unstarted(made)
    labels = [m[0].id for m in made] if by_run else _letters([m[0].name for m in made])
    return [
        Group(label, tuple(sorted(m, key=lambda run: (run.seed is None, run.seed or 0, run.created))))
        for label, m in zip(labels, made, strict=True)
    ]


def differing(groups: Iterable[Group]) -> list[str]:
    """Dotted names of the settings in which the groups differ, in the configuration's order; seed and name not."""
    seen: dict[str, set[str]] = {}
    groups = list(groups)
    names = dict.fromkeys(name for g in groups for name in g.settings if matters(name))
    for name in names:
        seen[name] = {written(g.settings.get(name)) for g in groups}
    return [name for name, values in seen.items() if len(values) > 1 and name not in ("seed", "name")]


def written(value: Any) -> str:
    """A setting's value as the command line has it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    return json.dumps(value, default=str)


def _with_unstarted(made: list[list[History]]) -> list[list[History]]:
    """Runs that have not met their data yet go with those of the same settings that have, where that is one group."""
    started = [m for m in made if m[0].test_sha256]
    out = list(started)
    for waiting in (m for m in made if not m[0].test_sha256):
        fits = [m for m in started if m[0].settings_sha256 == waiting[0].settings_sha256]
        if len(fits) == 1:
            fits[0].extend(waiting)
        else:
            out.append(waiting)
    return out


def _letters(names: list[str]) -> list[str]:
    """Names that occur several times get -a, -b, ... -z, -aa, ..."""
    taken, count, out = set(names), dict.fromkeys(names, 0), []
    for name in names:
        if names.count(name) == 1:
            out.append(name)
            continue
        while True:
            label = f"{name}-{_letter(count[name])}"
            count[name] += 1
            if label not in taken:
                break
        taken.add(label)
        out.append(label)
    return out


def _letter(number: int) -> str:
    letters = ""
    while number >= 0:
        number, at = divmod(number, 26)
        letters, number = chr(ord("a") + at) + letters, number - 1
    return letters
