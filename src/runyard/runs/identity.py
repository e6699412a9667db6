"""Which settings may change on a resume, and which decide what the run learns. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from runyard.config.fields import config_to_dict
from runyard.config.schema import Config

# What `resume` may change: nothing here affects what the run learns.
CHANGEABLE_SETTINGS = ("cluster.", "checkpoint.", "tracking.", "data.root", "workers", "loader",
                       "eval_batch_size", "runs_group_readable", "report")  # fmt: skip
Change = tuple[object, object]  # the two values of a setting
NAMING_SETTINGS = ("name", "runs_dir")  # `resume` does not accept them, and they do not affect learning


def identity_settings(config: Config) -> dict[str, object]:
    """Return the settings that decide what is learned, by dotted name: neither changeable nor mere names."""
    return {
        name: v
        for name, v in _flat(config_to_dict(config))
        if not name.startswith(CHANGEABLE_SETTINGS) and name not in NAMING_SETTINGS
    }


def _flat(values: Mapping[str, object], path: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield path + name, value


def changed_settings(one: Mapping[str, object], other: Mapping[str, object], path: str = "") -> dict[str, Change]:
    """Return the settings that differ, by dotted name, with both values; None for a side that does not have it."""
    changed: dict[str, Change] = {}
    for name in dict.fromkeys([*one, *other]):
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changed |= changed_settings(a, b, f"{path}{name}.")
        elif a != b:
            changed[path + name] = (a, b)
    return changed
