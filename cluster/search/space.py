"""The search space: overrides like ``optim.lr=log(1e-3,1)``, as Optuna's distributions.

``log(a,b)`` and ``uniform(a,b)`` draw real numbers; ``int(a,b)`` and ``int(a,b,step)`` draw whole numbers, both ends
included; ``logint(a,b)`` draws whole numbers evenly by their logarithm; ``choice(x,y,...)`` draws one of the values.
"""

from __future__ import annotations

import math
import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from runyard.config.schema import kind_of
from runyard.errors import UserError

RANGE_START = re.compile(r"\+*[\w.]+=(log|uniform|int|logint|choice)\(")
HYDRAS_RANGE_START = re.compile(r"\+*[\w.]+=(range|interval|tag|glob|shuffle|sort)\(")
EXPECTED = {
    "log": "two numbers, as optim.lr=log(1e-3,1)",
    "uniform": "two numbers, as uniform(0,0.2)",
    "int": "two whole numbers, and perhaps a step, as int(8,64)",
    "logint": "two whole numbers, as logint(8,512)",
    "choice": "two or more different values, as choice(cosine,one_cycle)",
}

Space = dict[str, BaseDistribution]


def split_search_space(overrides: list[str]) -> tuple[list[str], Space]:
    """Return the overrides that are the same in every trial, and the distributions of the others by setting name.

    Raises:
        UserError: a range is invalid, a setting cannot be searched or is given twice, or there is nothing to search.
    """
    fixed, space = [], {}
    for override in overrides:
        distribution = read_range(override)
        if distribution is None:
            fixed.append(override)
            continue
        name = override.lstrip("+").partition("=")[0]
        if name == "experiment" or kind_of(name) != "recipe":
            raise UserError(f"{override}: {name} is the same for all of a search", "give it one value")
        if name in space:
            raise UserError(f"{override}: {name} was given twice", "leave one out")
        space[name] = distribution
    if not space:
        raise UserError("nothing to search", "give at least one setting a range, as optim.lr=log(1e-3,1)")
    if duplicates := [o for o in fixed if o.lstrip("+").partition("=")[0] in space]:
        raise UserError(f"{duplicates[0]}: it is searched as well", "leave one out")
    return fixed, space


def read_range(override: str) -> BaseDistribution | None:
    """Return what the override draws from; None if it is no range.

    Raises:
        UserError: the range is invalid.
    """
    range_start = RANGE_START.match(override)
    if (hydras := HYDRAS_RANGE_START.match(override)) is not None:
        raise UserError(f"{override}: {hydras[1]}() is no range of a search", f"ranges are {', '.join(EXPECTED)}")
    if range_start is None:
        return None
    parser = OverridesParser.create()
    # Hydra's own words are range(a,b), which leaves out b, interval(a,b), which needs a cast for whole numbers, and
    # tag(log, ...) around them: one word for each distribution is shorter, and its ends are those that are written.
    cast = parser.functions.functions["int"]
    del parser.functions.definitions["int"]
    for word in ("log", "uniform", "logint"):
        parser.functions.register(word, lambda *ends, word=word: _distribution(word, ends))
    parser.functions.register("int", lambda *ends: cast(*ends) if len(ends) == 1 else _distribution("int", ends))
    try:
        parsed = parser.parse_override(override.lstrip("+"))
    except (HydraException, ValueError, RecursionError) as error:
        if isinstance(cause := error.__cause__, UserError):
            raise UserError(f"{override}: {cause.problem}", cause.fix) from None
        raise UserError(f"{override}: expected {EXPECTED[range_start[1]]}") from None
    value = parsed.value()
    if not isinstance(value, ChoiceSweep):
        return value if isinstance(value, BaseDistribution) else None
    choices = list(parsed.sweep_string_iterator())
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise UserError(f"{override}: expected {EXPECTED['choice']}")
    return CategoricalDistribution(choices)


def lowest_point(space: Space) -> list[str]:
    """Return the overrides of the point with the lowest value, or the first choice, of each dimension."""
    first = {name: d.choices[0] if isinstance(d, CategoricalDistribution) else d.low for name, d in space.items()}  # type: ignore[attr-defined]
    return [override(name, value) for name, value in first.items()]


def format_point(point: dict[str, object]) -> str:
    """Return one point as text, with four significant digits of each number."""
    return " ".join(f"{name}={v:.4g}" if isinstance(v, float) else f"{name}={v}" for name, v in point.items())


def override(name: str, value: object) -> str:
    """Return one drawn value as an override that Hydra can read."""
    return f"{name}={value!r}" if isinstance(value, float) else f"{name}={value}"


def _distribution(word: str, numbers: tuple[object, ...]) -> BaseDistribution:
    whole = word in ("int", "logint")
    ends = [n for n in numbers if isinstance(n, int if whole else (int, float)) and math.isfinite(n)]
    if len(ends) < len(numbers) or bool in map(type, ends) or len(ends) not in ((2, 3) if word == "int" else (2,)):
        raise UserError(f"expected {EXPECTED[word]}")
    low, high = ends[:2]
    example = EXPECTED[word].rpartition(", ")[2]
    if not low < high:
        raise UserError(f"expected the smaller number first, {example}")
    if word in ("log", "logint") and low <= 0:
        raise UserError(f"has no logarithm at {low:g}", f"begin above 0, {example}")
    if not whole:
        return FloatDistribution(low, high, log=word == "log")
    step = int(ends[2]) if len(ends) == 3 else 1
    if step < 1 or (high - low) % step:
        raise UserError(f"expected a step that leads from {low} to {high}, as int(16,64,16)")
    return IntDistribution(int(low), int(high), log=word == "logint", step=step)
