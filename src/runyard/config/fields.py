"""Checks plain values and makes dataclasses of them. A wrong name, type or value is refused with a one-line message."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from runyard.config.setting import Setting, setting_of, type_hints
from runyard.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar("_T")
MAX_LISTED_NAMES = 12  # a message lists no more names than this
LARGEST = 2**53  # above it, floats (and the numbers of many JSON readers) cannot hold every whole number


def config_to_dict(config: DataclassInstance) -> dict[str, Any]:
    """Return the configuration as plain dicts, lists and scalars, in field order, as ``config_from_dict`` reads it."""
    values: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        known = setting_of(f)
        if known is not None and known.rest:
            values.update(value)
        else:
            is_group = dataclasses.is_dataclass(value) and not isinstance(value, type)
            values[f.name] = config_to_dict(value) if is_group else value
    return values


def read_dataclass(cls: type[_T], values: Mapping[str, object], path: str = "") -> _T:
    """Build dataclass ``cls`` from plain values, checking names, types and ranges. ``path`` is put before names."""
    hints = type_hints(cls)  # type: ignore[arg-type]  # mypy: a type variable's class is not hashable
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    known = {name: setting_of(f) for name, f in fields.items()}
    rest_field = next((name for name, s in known.items() if s is not None and s.rest), None)
    unknown = {str(key): value for key, value in values.items() if key not in fields or key == rest_field}
    if unknown and rest_field is None:
        raise UserError(unknown_name_message(path + next(iter(unknown)), [path + name for name in fields]))
    checked: dict[str, object] = {}
    for name, f in fields.items():
        if name == rest_field:
            checked[name] = unknown
        elif name in values:
            checked[name] = _checked_type(hints[name], values[name], path + name)
            if (s := known[name]) is not None:
                _check_value(s, checked[name], path + name)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            doc = "a group of settings" if (s := known[name]) is None else s.doc
            raise UserError(f"{path}{name} is missing: {doc}", f"add {path}{name}=VALUE")
    return cls(**checked)


def unknown_name_message(key: str, known: list[str]) -> str:
    """Return the message for an unknown name, with the most similar known one."""
    leaves = {k.rpartition(".")[2]: k for k in reversed(known)}
    suggestions = [leaves[key]] if key in leaves else difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not suggestions and "." not in key:  # a misspelled name without its group: search all groups
        suggestions = [leaves[leaf] for leaf in difflib.get_close_matches(key, leaves, n=1, cutoff=0.6)]
    fallback = (
        f"known: {', '.join(known)}" if len(known) <= MAX_LISTED_NAMES else "`runyard settings` lists all settings"
    )
    return f"unknown setting {key}: {f'did you mean {suggestions[0]}?' if suggestions else fallback}"


def setting_names(cls: type, path: str = "") -> list[str]:
    """Return the dotted name of every setting."""
    out: list[str] = []
    for name, hint in type_hints(cls).items():
        out.append(path + name)
        if dataclasses.is_dataclass(hint):
            out += setting_names(hint, f"{path}{name}.")  # type: ignore[arg-type]
    return out


def _checked_type(hint: object, value: object, path: str) -> object:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{path}={format_literal(value)}: expected a group of settings ({path}.NAME=VALUE)")
        return read_dataclass(typing.cast(type, hint), value, path + ".")
    if origin is types.UnionType:
        if value is None and type(None) in args:
            return None
        return _checked_type(next(a for a in args if a is not type(None)), value, path)
    if origin is Literal:
        if value not in args:
            raise UserError(f"{path}={format_literal(value)}: expected one of {', '.join(map(str, args))}")
        return value
    if origin is list:
        if not isinstance(value, (list, tuple)):
            given = format_literal(value, is_text=args[0] is str)
            raise UserError(f"{path}={given}: expected a list, such as {path}=[a,b]")
        return [_checked_type(args[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{path}={format_literal(value)}: expected a mapping from names to values")
        return dict(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:  # a whole number that no float holds
            value = math.inf
        if not math.isfinite(value):
            raise UserError(f"{path}={value}: expected a finite number")
        return value
    scalar = typing.cast(type, hint)
    if hint is not Any and (not isinstance(value, scalar) or (isinstance(value, bool) and scalar is not bool)):
        given = format_literal(value, is_text=False)
        raise UserError(f"{path}={given}: expected {_TYPE_WORDS.get(scalar, scalar.__name__)}")
    if isinstance(value, str) and (not value or any(ord(c) < 32 for c in value)):
        raise UserError(f"{path}={value!r}: expected text that is not empty and has no control characters")
    return value


def format_literal(value: object, *, is_text: bool = True) -> str:
    """Format a value for a message as on the command line: null, true, [1, 2]; text with special characters is quoted.

    Args:
        value: What is given.
        is_text: Whether the setting is text; else text that could be a number is quoted, too.
    """
    if isinstance(value, str):
        plain = re.fullmatch(r"[\w@%+:./-]+", value) if is_text else value.isidentifier()
        return value if plain and value not in ("null", "true", "false") else repr(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(format_literal, value))}]"
    return str(value)


_TYPE_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _check_value(known: Setting, value: object, path: str) -> None:
    if isinstance(value, str) and known.pattern is not None and not re.fullmatch(known.pattern.regex, value):
        raise UserError(f"{path}={format_literal(value)}: expected {known.pattern.expected}")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    minimum, exclusive_minimum = known.minimum, known.exclusive_minimum
    maximum, exclusive_maximum = known.maximum, known.exclusive_maximum
    if isinstance(value, int) and maximum is None and exclusive_maximum is None and value > LARGEST:
        maximum = LARGEST
    bounds = (
        (minimum, "at least", lambda b: value >= b),
        (exclusive_minimum, "above", lambda b: value > b),
        (maximum, "at most", lambda b: value <= b),
        (exclusive_maximum, "below", lambda b: value < b),
    )
    for bound, _, holds in bounds:
        if bound is not None and not holds(bound):
            expected = " and ".join(f"{w} {b:g}" if abs(b) < 1e6 else f"{w} {b}" for b, w, _ in bounds if b is not None)
            type_text = "a whole number" if isinstance(value, int) else "a number"
            raise UserError(f"{path}={value}: expected {type_text} {expected}")
