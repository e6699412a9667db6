"""The list of all settings with their meaning, type and default, which ``runyard settings`` prints."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator
from typing import Any

from runyard.config.compose import compose, config_groups
from runyard.config.schema import Config, kind_of
from runyard.config.setting import setting_of
from runyard.errors import UserError


@dataclasses.dataclass(frozen=True)
class SettingRow:
    """A setting as ``runyard settings`` lists it; ``default`` is its value without an experiment."""

    name: str
    type: str
    doc: str
    default: object
    kind: str


def print_settings(prefix: str, *, as_json: bool) -> None:
    """Print the settings whose dotted name begins with ``prefix``.

    Raises:
        UserError: there is no such setting.
    """
    rows = [row for row in list_settings() if row.name.startswith(prefix)]
    if not rows:
        raise UserError(f"no setting begins with {prefix!r}", "`runyard settings` lists all")
    if as_json:
        print(json.dumps([vars(row) for row in rows], indent=1))
        return
    for row in rows:
        print(f"{row.name}={json.dumps(row.default)}  ({row.type}; {row.kind})\n    {row.doc}")
    if not prefix:
        print("\n`runyard resume` takes another value of what is execution, location or ranks.")
        print("\ngroups (GROUP=OPTION):")
        for name, options in config_groups().items():
            print(f"  {name}: {', '.join(options)}")


def list_settings() -> list[SettingRow]:
    """Return every setting, in the order of the schema."""
    return list(_rows(Config, compose([]).values, ""))


def _rows(cls: type, values: dict[str, Any], path: str) -> Iterator[SettingRow]:
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if (known := setting_of(f)) is None:
            yield from _rows(hints[f.name], values[f.name], f"{path}{f.name}.")
        elif known.rest:
            for name in sorted(values.keys() - hints.keys()):
                doc = f"A setting of {values['name']} only"
                yield SettingRow(path + name, type(values[name]).__name__, doc, values[name], kind_of(path + name))
        else:
            type_name = str(f.type).replace("Literal", "one of ").replace(" | None", " or null")
            yield SettingRow(path + f.name, type_name, known.doc, values[f.name], known.kind)
