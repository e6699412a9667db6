"""Which settings a run may go on with otherwise, and which would have it learn something else. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from runyard.config.fields import config_to_dict
from runyard.config.schema import Config

# What a run may go on with: nothing that changes what it learns.
CHANGEABLE_SETTINGS = ("cluster.", "checkpoint.", "tracking.", "data.root", "workers", "loader",
                       "eval_batch_size", "runs_group_readable", "report")  # fmt: skip
NAMING_SETTINGS = ("name", "runs_dir")  # `resume` does not take them, and nothing is learned from them


def identity_settings(config: Config) -> dict[str, Any]:
    """The settings that decide what is learned, by dotted name: all that ``resume`` may not change, but for names."""
    return {
        name: v
        for name, v in _flat(config_to_dict(config))
        if not name.startswith(CHANGEABLE_SETTINGS) and name not in NAMING_SETTINGS
    }


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield path + name, value


def changed_settings(one: Mapping[str, Any], other: Mapping[str, Any], path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted names of the settings that differ, with both values; None where one side lacks it."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys([*one, *other]):
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= changed_settings(a, b, f"{path}{name}.")
        elif a != b:
            found[path + name] = (a, b)
    return found
