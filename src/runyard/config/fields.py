"""Plain values to checked dataclasses: names, types and ranges, each refused with one line that says how to mend it."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal, TypeVar

from runyard.errors import UserError

T = TypeVar("T")
FEW = 12  # names that a message may list in full


def setting(
    doc: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    before: Any = dataclasses.MISSING,
) -> Any:
    """A field with its documentation and its range: ``least <= value <= most``, ``above < value < below``.

    ``before`` is the value of runs made before there was this setting: what the code did then.
    """
    metadata = {"doc": doc, "least": least, "above": above, "most": most, "below": below}
    return field(metadata=metadata, default=before)


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain dicts, lists and scalars, in field order: what ``from_dict`` reads."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("rest"):
            out.update(value)
        else:
            out[f.name] = to_dict(value) if dataclasses.is_dataclass(value) else value
    return out


def read(cls: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """Build dataclass ``cls`` from plain values, checking names, types and ranges. ``path`` is put before names."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    rest = next((name for name, f in fields.items() if f.metadata.get("rest")), None)
    strangers = {str(key): value for key, value in values.items() if key not in fields or key == rest}
    if strangers and rest is None:
        raise UserError(unknown(path + next(iter(strangers)), [path + name for name in fields]))
    given: dict[str, Any] = {}
    for name, f in fields.items():
        if name == rest:
            given[name] = strangers
        elif name in values:
            given[name] = _typed(hints[name], values[name], path + name)
            _in_range(f, given[name], path + name)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(
                f"{path}{name} is missing: {f.metadata.get('doc', 'a group of settings')}; add {path}{name}=VALUE"
            )
    return cls(**given)


def unknown(key: str, known: list[str]) -> str:
    """The message for a name that does not exist, with the nearest that does."""
    leaves = {k.rpartition(".")[2]: k for k in reversed(known)}
    near = [leaves[key]] if key in leaves else difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near and "." not in key:  # a bare leaf name, misspelt: look for it in every group
        near = [leaves[leaf] for leaf in difflib.get_close_matches(key, leaves, n=1, cutoff=0.6)]
    few = f"known: {', '.join(known)}" if len(known) <= FEW else "`runyard settings` lists what there is"
    return f"unknown setting {key}: {f'did you mean {near[0]}?' if near else few}"


def names(cls: type, path: str = "") -> list[str]:
    """Every setting's dotted name."""
    out: list[str] = []
    for name, hint in typing.get_type_hints(cls).items():
        out.append(path + name)
        if dataclasses.is_dataclass(hint):
            out += names(hint, f"{path}{name}.")  # type: ignore[arg-type]
    return out


def _typed(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"{path}={written(value)}: expected a group of settings ({path}.NAME=VALUE)")
        return read(typing.cast(type, hint), value, path + ".")
    if origin is types.UnionType:
        if value is None and type(None) in args:
            return None
        return _typed(next(a for a in args if a is not type(None)), value, path)
    if origin is Literal:
        if value not in args:
            raise UserError(f"{path}={written(value)}: expected one of {', '.join(map(str, args))}")
        return value
    if origin is list:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{path}={written(value)}: expected a list, as {path}=[a,b]")
        return [_typed(args[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{path}={written(value)}: expected settings by name")
        return dict(value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UserError(f"{path}={value}: expected a finite number")
        return float(value)
    if hint is not Any and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise UserError(f"{path}={written(value)}: expected {_TYPE_WORDS.get(hint, hint.__name__)}")
    if isinstance(value, str) and (not value or any(ord(c) < 32 for c in value)):
        raise UserError(f"{path}={value!r}: expected text that is not empty and has no control characters")
    return value


def written(value: Any) -> str:
    """A value for a message as the command line has it: null, true, [1, 2]; a word bare, other text quoted."""
    if isinstance(value, str):
        return value if value.isidentifier() and value not in ("null", "true", "false") else repr(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(written, value))}]"
    return str(value)


_TYPE_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _in_range(f: dataclasses.Field[Any], value: Any, path: str) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    least, above, most, below = (f.metadata.get(k) for k in ("least", "above", "most", "below"))
    bounds = (
        (least, "at least", lambda b: value >= b),
        (above, "above", lambda b: value > b),
        (most, "at most", lambda b: value <= b),
        (below, "below", lambda b: value < b),
    )
    for bound, _, holds in bounds:
        if bound is not None and not holds(bound):
            wanted = " and ".join(f"{w} {b:g}" if abs(b) < 1e6 else f"{w} {b}" for b, w, _ in bounds if b is not None)
            kind = "a whole number" if isinstance(value, int) else "a number"
            raise UserError(f"{path}={value}: expected {kind} {wanted}")
