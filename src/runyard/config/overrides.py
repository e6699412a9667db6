"""Reads overrides by Hydra's grammar, and keeps what is typed for a text setting: ``name=007`` is no number there."""

from __future__ import annotations

import functools
import math
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import fields, is_dataclass

from hydra.core.override_parser.overrides_parser import create_functions
from hydra.core.override_parser.overrides_visitor import HydraErrorListener, HydraOverrideVisitor
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import (  # type: ignore[attr-defined]
    CommonTokenStream,
    InputStream,
    OverrideLexer,
)
from hydra.grammar.gen.OverrideParser import OverrideParser

from runyard.config import schema
from runyard.config.setting import type_hints
from runyard.errors import UserError

if typing.TYPE_CHECKING:
    from hydra._internal.grammar.functions import Functions

MAX_POINTS = 10_000  # of a grid: each is a run directory
_MANY = 10**12  # values of a range that are not counted exactly: range(0,1,1e-300) has a number of 300 digits
TIME_SETTING, TIMEOUT_SETTING = "cluster.time", "cluster.timeout_min"
# sbatch's: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds
TIME_REGEX = re.compile(
    r"(?:(\d{1,4})-(\d{1,2})(?::(\d{1,2}))?(?::(\d{1,2}))?|(?:(\d{1,4}):(?=\d+:))?(\d{1,6})(?::(\d{1,2}))?)"
)


class SettingTypes(typing.NamedTuple):
    """The settings by what their values are: text or a list of texts, and mappings from names to values."""

    texts: frozenset[str]
    mappings: frozenset[str]


@functools.cache
def setting_types() -> SettingTypes:
    """Return the dotted names of settings that hold text, and of those that hold a mapping."""
    hints = dict(_hints(schema.Config, ""))
    texts = {name for name, hint in hints.items() if hint in (str, list[str])}
    mappings = {name for name, hint in hints.items() if typing.get_origin(hint) is dict}
    return SettingTypes(frozenset(texts), frozenset(mappings - {"model.options"}))


def name_of(override: str) -> str:
    """Return the setting that the override is about."""
    return override.lstrip("+").partition("=")[0]


def in_mapping(name: str) -> bool:
    """Return whether ``name`` is a mapping's, as cluster.extra, or one of the names in it, as cluster.extra.wckey."""
    return any(name == mapping or name.startswith(f"{mapping}.") for mapping in setting_types().mappings)


def parse_override(override: str) -> Override:
    """Parse an override. Numbers and words like true are text if its setting is; in a mapping, numbers are.

    Raises:
        UserError: it cannot be read.
    """
    override = override.lstrip("+")
    name = name_of(override)
    is_text = name in setting_types().texts or name == TIME_SETTING
    try:
        return _parse(override, texts=is_text, numbers=is_text or in_mapping(name))
    except (HydraException, ValueError, RecursionError) as error:
        if isinstance(error, RecursionError):
            fix = "its brackets are too deeply nested"
        elif isinstance(error, ValueError):
            fix = "expected a shorter number"
        else:
            fix = f"put a value with special characters into two kinds of quotes, such as '{name}=\"/a (1)/b\"'"
        raise UserError(f"{_short(override)}: cannot be read", fix) from None


def as_typed(override: str, parsed: Override) -> str:
    """Return the ``parsed`` override with quotes around what Hydra would not read as the text that it is."""
    if not _has_quotes_of_ours(parsed._value):
        return override.lstrip("+")
    return f"{parsed.get_key_element()}={parsed.get_value_element_as_str()}"


def points(override: str) -> list[str]:
    """Return the overrides of one value each that a sweep stands for; itself, if it is none.

    Raises:
        UserError: it cannot be read, holds no value, or more than a grid may have.
    """
    parsed, name = parse_override(override), name_of(override)
    if not parsed.is_sweep_override():
        return [override]
    value = parsed.value()
    if isinstance(value, Glob | IntervalSweep):
        called = "glob()" if isinstance(value, Glob) else "interval()"
        raise UserError(
            f"{_short(override)}: expected the values themselves, such as {name}=A,B", f"{called} is not supported"
        )
    if isinstance(value, RangeSweep) and not 0 < (count := _count(value)) <= MAX_POINTS:
        fix = (
            f"at most {MAX_POINTS:,} make a grid"
            if count
            else f"give one that does, such as {name}=range(0,3) for 0,1,2"
        )
        held = f"{'over ' * (count > _MANY)}{min(count, _MANY):,} values" if count else "no value"
        raise UserError(f"{_short(override)}: holds {held}", fix)
    return [f"{name}={value}" for value in parsed.sweep_string_iterator()]


def translate_time(overrides: list[str]) -> list[str]:
    """Return the overrides with ``cluster.time``, a time limit in sbatch's way, as minutes in ``cluster.timeout_min``.

    Raises:
        UserError: it is no time, or both are given and differ.
    """
    times = [o for o in overrides if name_of(o) == TIME_SETTING]
    if not times:
        return overrides
    minutes = minutes_of(str(parse_override(times[-1]).value()), times[-1])
    others = [o for o in overrides if name_of(o) == TIMEOUT_SETTING]
    if different := [o for o in others if o.partition("=")[2] != str(minutes)]:
        raise UserError(f"{times[-1]}: {minutes} min, and {different[-1]}: two time limits", "leave one out")
    return [*(o for o in overrides if o not in times and o not in others), f"{TIMEOUT_SETTING}={minutes}"]


def minutes_of(time: str, given: str) -> int:
    """Return a time in one of sbatch's formats in minutes, rounded up as SLURM does; ``given`` is for the message."""
    if (match := TIME_REGEX.fullmatch(time)) is None:
        raise UserError(f"{_short(given)}: expected a time as sbatch's, such as 2-00:00:00, 12:30:00 or 90 (minutes)")
    days, hours, minutes, seconds, plain_hours, plain_minutes, plain_seconds = (
        int(part or 0) for part in match.groups()
    )
    total_s = ((days * 24 + hours + plain_hours) * 60 + minutes + plain_minutes) * 60 + seconds + plain_seconds
    return math.ceil(total_s / 60)


_hydra_functions = functools.cache(create_functions)


def _hints(cls: type, path: str) -> Iterable[tuple[str, object]]:
    """Yield the type of each setting but for its None."""
    hints = type_hints(cls)
    for field in fields(cls):
        hint = hints[field.name]
        if is_dataclass(hint):
            yield from _hints(typing.cast(type, hint), f"{path}{field.name}.")
        else:
            alternatives = typing.get_args(hint) if isinstance(hint, types.UnionType) else ()
            yield path + field.name, next((a for a in alternatives if a is not types.NoneType), hint)


class _OwnQuotes(QuotedString):
    """Quotes that the user did not type."""


class _Visitor(HydraOverrideVisitor):
    def __init__(self, functions: Functions, *, texts: bool, numbers: bool) -> None:
        super().__init__(functions)
        self._texts, self._numbers = texts, numbers

    def visitPrimitive(  # noqa: N802 (Hydra's name)
        self, ctx: OverrideParser.PrimitiveContext
    ) -> QuotedString | int | bool | float | str | None:
        typed = ctx.getText().strip()  # type: ignore[no-untyped-call]
        try:
            value = super().visitPrimitive(ctx)
        except ValueError:  # more digits than Python converts
            if not self._numbers:
                raise
            value = 0
        quoted = self._texts if isinstance(value, bool) else self._numbers and isinstance(value, int | float)
        return _OwnQuotes(typed, Quote.single) if quoted else value


@functools.lru_cache(maxsize=1000)  # a grid repeats its values
def _parse(override: str, *, texts: bool, numbers: bool) -> Override:
    """Parse as Hydra's OverridesParser does, which has no way to give it a visitor."""
    listener, lexer = HydraErrorListener(), OverrideLexer(InputStream(override))
    lexer.removeErrorListeners()
    lexer.addErrorListener(listener)
    parser = OverrideParser(CommonTokenStream(lexer))
    parser.removeErrorListeners()
    parser.addErrorListener(listener)
    parsed = _Visitor(_hydra_functions(), texts=texts, numbers=numbers).visit(parser.override())
    assert isinstance(parsed, Override)
    parsed.input_line = override
    parsed.validate()
    return parsed


def _has_quotes_of_ours(value: object) -> bool:
    if isinstance(value, list | dict):
        return any(map(_has_quotes_of_ours, value.values() if isinstance(value, dict) else value))
    return isinstance(value, _OwnQuotes)


def _count(sweep: RangeSweep) -> int:
    """Return how many values the range holds, without making them."""
    start, stop, step = sweep.start or 0, sweep.stop or 0, sweep.step
    if not step or not all(map(math.isfinite, (start, stop, step))):
        return 0
    return max(0, math.ceil((stop - start) / step))


def _short(override: str) -> str:
    return override if len(override) <= 80 else f"{override[:60]}… ({len(override)} characters)"
