"""The search space: overrides like ``optim.lr=log(1e-3,1)``, as Optuna's distributions.

``log(a,b)`` and ``uniform(a,b)`` draw real numbers; ``int(a,b)`` and ``int(a,b,step)`` draw whole numbers, both ends
included; ``logint(a,b)`` draws whole numbers evenly by their logarithm; ``choice(x,y,...)`` draws one of the values as
they are written.
"""

from __future__ import annotations

import math
import re

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from runyard.errors import UserError

RANGE_PATTERN = re.compile(r"\+*(?P<name>[\w.]+)=(?P<word>log|uniform|int|logint|choice)\((?P<inside>.*)\)")
UNCLOSED_RANGE = re.compile(r"\+*[\w.]+=(log|uniform|logint|choice)\((?!.*\)$)")
UNSEARCHABLE_SETTINGS = (
    "cluster",
    "checkpoint",
    "tracking",
    "data",
    "runs_dir",
    "experiment",
    "workers",
    "loader",
    "eval_batch_size",
)
EXAMPLE = "as optim.lr=log(1e-3,1)"

Space = dict[str, BaseDistribution]


def split_search_space(overrides: list[str]) -> tuple[list[str], Space]:
    """Return the overrides that are the same in every trial, and the distributions of the others by setting name.

    Raises:
        UserError: a range is invalid, a setting cannot be searched or is given twice, or there is nothing to search.
    """
    fixed, space = [], {}
    for override in overrides:
        match = RANGE_PATTERN.fullmatch(override)
        if match is None or (match["word"] == "int" and len(_parts(match["inside"])) == 1):  # Hydra's own int(3.7)
            fixed.append(override)
            continue
        name = match["name"]
        if name.split(".")[0] in UNSEARCHABLE_SETTINGS:
            raise UserError(f"{override}: {name} is the same for all of a search; give it one value")
        if name in space:
            raise UserError(f"{override}: {name} was given twice; leave one out")
        space[name] = _distribution(override, match["word"], _parts(match["inside"]))
    if unclosed := next((o for o in fixed if UNCLOSED_RANGE.match(o)), None):
        raise UserError(f"{unclosed}: a range that cannot be read; expected a closing bracket, {EXAMPLE}")
    if not space:
        raise UserError(f"nothing to search: give at least one setting a range, {EXAMPLE}")
    if duplicates := [o for o in fixed if o.lstrip("+").partition("=")[0] in space]:
        raise UserError(f"{duplicates[0]}: it is searched as well; leave one out")
    return fixed, space


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


def _distribution(text: str, function: str, parts: list[str]) -> BaseDistribution:
    if function == "choice":
        if len(parts) < 2 or len(set(parts)) < len(parts) or "" in parts:
            raise UserError(f"{text}: expected two or more different values, as choice(cosine,one_cycle)")
        return CategoricalDistribution(parts)
    number_type = int if function in ("int", "logint") else float
    counts = (2, 3) if function == "int" else (2,)
    try:
        numbers = [number_type(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in counts or not all(map(math.isfinite, numbers)):
        expected = "two whole numbers" if number_type is int else "two numbers"
        raise UserError(
            f"{text}: expected {expected}{', and perhaps a step' if function == 'int' else ''}, {_example(function)}"
        )
    low, high = numbers[:2]
    if not low < high:
        raise UserError(f"{text}: expected the smaller number first, {_example(function)}")
    if function in ("log", "logint") and low <= 0:
        raise UserError(f"{text}: has no logarithm at {parts[0]}; begin above 0, {_example(function)}")
    if number_type is float:
        return FloatDistribution(low, high, log=function == "log")
    if function == "logint":
        return IntDistribution(int(low), int(high), log=True)
    step = int(numbers[2]) if len(numbers) == 3 else 1
    if step < 1 or (high - low) % step:
        raise UserError(f"{text}: expected a step that leads from {low} to {high}, as int(16,64,16)")
    return IntDistribution(int(low), int(high), step=step)


def _example(function: str) -> str:
    examples = {"log": EXAMPLE, "uniform": "as uniform(0,0.2)", "int": "as int(8,64)", "logint": "as logint(8,512)"}
    return examples[function]


def _parts(inside: str) -> list[str]:
    """Split at the commas outside of brackets."""
    parts, depth = [""], 0
    for character in inside:
        depth += (character in "[({") - (character in "])}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
