"""Selects runs by conditions on settings and metrics, ``--where 'optim.lr<1e-3'``; parsed, never evaluated."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeGuard

from runyard.analysis.compare.measures import MEASURES, TEXT_FIELDS, parse_decimal
from runyard.config.fields import unknown_name_message
from runyard.errors import UserError
from runyard.runs.results.history import RunHistory

CONDITION_PATTERN = re.compile(r"\s*([\w.]+)\s*(<=|>=|==|!=|=|<|>)\s*(\S.*?)\s*")
CONDITION_HELP = "as 'optim.lr<1e-3', 'model.name=starter' or 'last>=0.9'"
ORDER_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Condition:
    """A condition: the ``name`` of a setting or metric, one of < <= > >= = !=, and a value."""

    text: str
    name: str
    comparison: str
    value: object

    def matches(self, run: RunHistory) -> bool:
        """Return whether this run matches. A run without the setting or metric matches only != and null.

        Raises:
            UserError: the order of values that are no numbers is asked for.
        """
        actual = lookup_value(run, self.name)
        if self.comparison in ORDER_COMPARISONS:
            if actual is None:
                return False
            if not (_is_number(actual) and _is_number(self.value)):
                raise UserError(
                    f"--where {self.text!r}: {self.name} is {actual} in run {run.id}",
                    "only numbers have an order: use = or !=",
                )
            return ORDER_COMPARISONS[self.comparison](actual, self.value)
        equal = actual == self.value and (type(actual) is bool) is (type(self.value) is bool)  # true does not equal 1
        return equal is (self.comparison == "=")


def parse_conditions(texts: Iterable[str], runs: Iterable[RunHistory]) -> list[Condition]:
    """Parse the conditions in the texts, which may join several by " and ". A run has to match all.

    Raises:
        UserError: a text is no condition, or a name is neither a metric nor a setting of any of the runs.
    """
    runs = list(runs)
    known = list(dict.fromkeys([*MEASURES, *TEXT_FIELDS, *(name for run in runs for name in run.settings)]))
    return [_condition(part, known) for text in texts for part in re.split(r"\s+and(?:\s+|$)", text)]


def lookup_value(run: RunHistory, name: str) -> object:
    """Return a run's setting or metric; None if it has none."""
    if name in MEASURES:
        value = MEASURES[name].value_of(run)
        return value if value == value else None
    return TEXT_FIELDS[name](run) if name in TEXT_FIELDS else run.settings.get(name)


def _condition(text: str, known: list[str]) -> Condition:
    match = CONDITION_PATTERN.fullmatch(text)
    if match is None:
        raise UserError(f"--where {text!r}: expected NAME, one of < <= > >= = !=, and a value, {CONDITION_HELP}")
    name, comparison, value = match.groups()
    if name not in known:
        raise UserError(f"--where {text!r}: {unknown_name_message(name, known)}")
    return Condition(text, name, "=" if comparison == "==" else comparison, _value(value))


def _value(text: str) -> object:
    """Parse a value as the command line writes it: a number, 92%, true, false, null, [a,b], or a word."""
    if text in ("true", "false", "null"):
        return json.loads(text)
    if text[0] == "[" and text[-1] == "]":
        return [_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    try:
        return parse_decimal(text)
    except ValueError:
        return text


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
