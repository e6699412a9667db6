"""What the kinds of settings mean to a run: what `resume` may change, what is learned, what sets runs apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from runyard.config.fields import config_to_dict
from runyard.config.schema import SETTINGS, Config, kind_of

Change = tuple[object, object]  # the two values of a setting


def is_changeable(name: str) -> bool:
    """Return whether `resume` takes another value of the setting: the run learns the same with it."""
    return kind_of(name) in ("execution", "location", "ranks")


def changeable_settings() -> list[str]:
    """Return what `resume` takes: groups all of whose settings are changeable, and single settings."""
    fixed_groups = {name.partition(".")[0] for name in SETTINGS if not is_changeable(name)}
    groups = {name: name.partition(".")[0] for name in SETTINGS if is_changeable(name)}
    return list(dict.fromkeys(name if group in fixed_groups else group for name, group in groups.items()))


def separates_runs(name: str) -> bool:
    """Return whether two runs that differ in the setting are different experiments, and not repetitions of one."""
    return name == "name" or kind_of(name) in ("recipe", "dataset", "ranks")


def identity_settings(config: Config) -> dict[str, object]:
    """Return the settings that decide what is learned, by dotted name: neither changeable nor mere names."""
    return {name: v for name, v in flatten(config_to_dict(config)) if kind_of(name) in ("recipe", "dataset")}


def flatten(values: Mapping[str, object], path: str = "") -> Iterator[tuple[str, object]]:
    """Yield nested settings by dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{path}{name}.")
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
