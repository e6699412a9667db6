"""The list of all settings with their meaning, type and default, which ``runyard settings`` prints."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

from runyard.config.compose import compose, config_groups
from runyard.config.schema import Config
from runyard.errors import UserError


def print_settings(prefix: str, *, as_json: bool) -> None:
    """Print the settings whose dotted name begins with ``prefix``.

    Raises:
        UserError: there is no such setting.
    """
    rows = [row for row in list_settings() if row["name"].startswith(prefix)]
    if not rows:
        raise UserError(f"no setting begins with {prefix!r}: `runyard settings` lists all")
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['name']}={json.dumps(row['default'])}  ({row['type']})\n    {row['doc']}")
    if not prefix:
        print("\ngroups (GROUP=OPTION):")
        for name, options in config_groups().items():
            print(f"  {name}: {', '.join(options)}")


def list_settings() -> list[dict[str, Any]]:
    """Return name, type, meaning and default (without an experiment) of every setting, in the order of the schema."""
    return list(_rows(Config, compose([]).values, ""))


def _rows(cls: Any, values: dict[str, Any], path: str) -> typing.Iterator[dict[str, Any]]:
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            yield from _rows(hints[f.name], values[f.name], f"{path}{f.name}.")
        elif f.metadata.get("rest"):
            own_names = values.keys() - {g.name for g in dataclasses.fields(cls)}
            for name in sorted(own_names):
                yield {
                    "name": path + name,
                    "type": type(values[name]).__name__,
                    "doc": f"A setting of {values['name']} only",
                    "default": values[name],
                }
        else:
            type_name = str(f.type).replace("Literal", "one of ").replace(" | None", " or null")
            yield {"name": path + f.name, "type": type_name, "doc": f.metadata["doc"], "default": values[f.name]}
