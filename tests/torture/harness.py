"""Makes attacks until each promise has had its number of them or the time is over, and keeps what came of it."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.torture.ground import ROOT, Ground
from tests.torture.promise import Attack, Attacker, Broken, Promise, Unable

CONTROL = -1  # in place of an attack's number


@dataclass
class Row:
    """What came of the attacks on one promise.

    Attributes:
        control: What the control broke of, which it must; None while it was not made.
        struck: How many attacks struck where; one may have struck several times.
        failures: ``{"attack": its number, "broke": in words}``; make one again with --only and --attack.
        unable: What this machine lacks to attack at all, in words.
        commits: What was attacked.
    """

    number: int
    promise: str
    attack: str
    at_least: int
    switched_off: str
    attacks: int = 0
    survived: int = 0
    seconds: float = 0.0
    control: str | None = None
    struck: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    unable: str | None = None
    commits: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, p: Promise, before: dict[str, Any] | None = None) -> Row:
        """A new row, or one that goes on with what an earlier run of the harness came to ``before``."""
        row = cls(p.number, p.promise, p.attack, p.at_least, p.switched_off)
        names = ("attacks", "survived", "seconds", "control", "struck", "failures", "commits")
        row = replace(row, **{name: before[name] for name in names}) if before else row
        row.commits = [*dict.fromkeys([*row.commits, commit()])]
        return row

    @property
    def holds(self) -> bool:
        return self.unable is None and self.attacks > 0 and self.survived == self.attacks and self.control is not None


class Harness:
    """Attacks on ``promises`` from one ``seed``. ``told`` hears of each row that changed.

    It goes on where an earlier run with that seed ended, if ``before`` is what that came to.
    """

    def __init__(
        self,
        promises: Sequence[Promise],
        ground: Ground,
        seed: int,
        told: Callable[[Row], None] = lambda row: None,
        before: dict[str, Any] | None = None,
    ) -> None:
        self.promises, self._ground, self._seed, self._told = promises, ground, seed, told
        rows = {row["number"]: row for row in (before or {"rows": []})["rows"] if row["seed"] == seed}
        self.rows = {p.number: Row.of(p, rows.get(p.number)) for p in promises}

    def run(self, counts: dict[int, int], minutes: float) -> None:
        """First the controls, then for so many ``minutes`` always the promise that had the least time, of those that
        want more attacks."""
        for promise in self.promises:
            if self.rows[promise.number].control is None:
                self.make(promise, CONTROL)
        until = time.monotonic() + 60 * minutes
        while time.monotonic() < until:
            rows = [self.rows[p.number] for p in self.promises]
            wanting = [row for row in rows if row.attacks < counts[row.number] and row.unable is None]
            if not wanting:
                return
            least = min(wanting, key=lambda row: row.seconds)
            self.make(next(p for p in self.promises if p.number == least.number), least.attacks)

    def make(self, promise: Promise, number: int) -> None:
        """One attack, or the control."""
        row, began = self.rows[promise.number], time.monotonic()
        control = number == CONTROL
        attacker = Attacker(self._ground, random.Random(f"{self._seed}/{promise.number}/{number}"), max(number, 0))
        broke, where = outcome(promise.control if control else promise.strike, attacker)
        row.seconds += time.monotonic() - began
        if isinstance(broke, Unable):
            row.unable = str(broke)
        elif control and isinstance(broke, Broken):
            row.control = self._in_words(broke)
        elif control:
            words = "the control held: the attack sees no fault" if broke is None else self._in_words(broke)
            row.failures.append({"attack": "control", "broke": words})
        else:
            row.attacks += 1
            row.survived += broke is None
            if broke is not None:
                row.failures.append({"attack": number, "broke": self._in_words(broke)})
            else:
                for place in where.split(", "):
                    row.struck[place] = row.struck.get(place, 0) + 1
        self._told(row)

    def _in_words(self, error: Exception) -> str:
        """A broken promise in its own words; of any other error where it came from, too: that is the harness's own.

        Less where this machine keeps things, which is nobody's business who reads the page.
        """
        said = str(error)
        if not isinstance(error, Broken):
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {error}"
        return said.replace(f"{self._ground.folder}/", "").replace(f"{ROOT}/", "")

    def result(self) -> dict[str, Any]:
        """As docs/guarantees.json keeps it."""
        made = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "seed": self._seed}
        return {
            "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()} {platform.release()}",
            "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "ffcv")}},
            "rows": [asdict(row) | made for row in self.rows.values()],
        }


def commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip()


def together(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """``new``, with the rows of ``old`` whose promises it did not attack."""
    rows = {row["number"]: row for row in (*old.get("rows", []), *new["rows"])}
    return {**new, "rows": [rows[number] for number in sorted(rows)]}


def outcome(attack: Attack, attacker: Attacker) -> tuple[Exception | None, str]:
    """What it broke of, if it did, and where it struck."""
    try:
        return None, attack(attacker)
    except Exception as error:
        return error, ""


def write(result: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n")
