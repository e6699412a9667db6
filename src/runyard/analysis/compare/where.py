"""``--where 'optim.lr<1e-3'``: which runs to keep, by a setting or a measure. Read, never evaluated."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from runyard.analysis.compare.measures import MEASURES, WORDS, decimal
from runyard.config.fields import unknown
from runyard.errors import UserError
from runyard.runs.history import History

SHAPE = re.compile(r"\s*([\w.]+)\s*(<=|>=|==|!=|=|<|>)\s*(\S.*?)\s*")
HELP = "as 'optim.lr<1e-3', 'model.name=starter' or 'last>=0.9'"
ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}


@dataclass(frozen=True)
class Condition:
    """``name`` of a setting or measure, one of < <= > >= = !=, and a number, word, true, false, null or list."""

    text: str
    name: str
    sign: str
    value: Any

    def holds(self, run: History) -> bool:
        """Whether this run fits. One that lacks the setting or the measure fits only an unequal, or null.

        Raises:
            UserError: a word is asked to be more or less than something.
        """
        given = look_up(run, self.name)
        if self.sign in ORDERED:
            if given is None:
                return False
            if not (_is_number(given) and _is_number(self.value)):
                raise UserError(
                    f"--where {self.text!r}: {self.name} is {given} in run {run.id}; only numbers are more or less: "
                    "use = or !="
                )
            return ORDERED[self.sign](given, self.value)
        equal = given == self.value and (type(given) is bool) is (type(self.value) is bool)  # true is not 1
        return equal is (self.sign == "=")


def read(texts: Iterable[str], runs: Iterable[History]) -> list[Condition]:
    """The conditions in the texts, which may join several by " and ". All have to hold.

    Raises:
        UserError: no condition, or a name that is neither a measure nor a setting of any of the runs.
    """
    runs = list(runs)
    known = list(dict.fromkeys([*MEASURES, *WORDS, *(name for run in runs for name in run.settings)]))
    return [_condition(part, known) for text in texts for part in re.split(r"\s+and(?:\s+|$)", text)]


def look_up(run: History, name: str) -> Any:
    """A run's setting or measure; None where it has none."""
    if name in MEASURES:
        value = MEASURES[name].of(run)
        return value if value == value else None
    return WORDS[name](run) if name in WORDS else run.settings.get(name)


def _condition(text: str, known: list[str]) -> Condition:
    shape = SHAPE.fullmatch(text)
    if shape is None:
        raise UserError(f"--where {text!r}: expected NAME, one of < <= > >= = !=, and a value, {HELP}")
    name, sign, value = shape.groups()
    if name not in known:
        raise UserError(f"--where {text!r}: {unknown(name, known)}")
    return Condition(text, name, "=" if sign == "==" else sign, _value(value))


def _value(text: str) -> Any:
    """As the command line has settings: numbers, 92%, true, false, null, [a,b], or a word, quoted or not."""
    if text in ("true", "false", "null"):
        return json.loads(text)
    if text[0] == "[" and text[-1] == "]":
        return [_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    try:
        return decimal(text)
    except ValueError:
        return text


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
