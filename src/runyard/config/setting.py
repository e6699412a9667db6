"""What is known of a setting, written on its field. Every list of settings in this program is derived from it."""

from __future__ import annotations

import dataclasses
import functools
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from runyard.config.patterns import Pattern

Kind = Literal["recipe", "dataset", "execution", "location", "ranks", "naming"]
REFUSED = "refused"  # by a rehearsal: names that only a real cluster has


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known of a setting. The kind says what another value changes: see ``recipe`` and its like."""

    kind: Kind
    doc: str
    minimum: float | None = None
    exclusive_minimum: float | None = None
    maximum: float | None = None
    exclusive_maximum: float | None = None
    pattern: Pattern | None = None
    slurm_only: bool = False  # cluster=local refuses every value but ``unset``
    unset: object = None  # the value in configs/cluster/slurm.yaml
    sbatch: Literal["no", "run", "all"] = "no"  # gives the value to the option of its name; all: in doctor's job too
    rehearsed: str = ""  # the value in a rehearsal, as the command line has it; REFUSED: only null is taken
    rest: bool = False  # the field holds the settings of its group that are no field


def setting(kind: Kind, doc: str, *, legacy_default: object = dataclasses.MISSING, **facts: Any) -> Any:
    """Return a dataclass field that carries a ``Setting`` of this kind, meaning and ``facts``.

    ``legacy_default`` is the value for runs from before this setting existed: what the code did then.
    """
    metadata = {"setting": Setting(kind=kind, doc=doc, **facts)}
    if isinstance(legacy_default, dict):
        return field(metadata=metadata, default_factory=legacy_default.copy)
    return field(metadata=metadata, default=legacy_default)


recipe = functools.partial(setting, "recipe")  # what is learned
dataset = functools.partial(setting, "dataset")  # what it is learned from, which is the same for all of a search
execution = functools.partial(setting, "execution")  # how it runs
slurm = functools.partial(setting, "execution", slurm_only=True)
location = functools.partial(setting, "location")  # where files lie, and who is told
ranks = functools.partial(setting, "ranks")  # how many ranks there are: rounding and cost
naming = functools.partial(setting, "naming")  # what a run is called, and where its directory is made


def setting_of(f: dataclasses.Field[object]) -> Setting | None:
    """Return what the field says of itself; None for a group of settings."""
    return f.metadata.get("setting")


@functools.cache  # a grid of a thousand asks ten thousand times
def type_hints(cls: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields."""
    return typing.get_type_hints(cls)


def settings_of(cls: type, path: str = "") -> dict[str, Setting]:
    """Return every setting of dataclass ``cls`` and of the groups in it, by dotted name, but for a network's own.

    Raises:
        TypeError: a field says nothing of itself.
    """
    found: dict[str, Setting] = {}
    hints = type_hints(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hint := hints[f.name]):
            found |= settings_of(typing.cast(type, hint), f"{path}{f.name}.")
        elif (known := setting_of(f)) is None:
            raise TypeError(f"{path}{f.name} in {cls.__name__}: write recipe(...) or another kind as its value")
        elif not known.rest:
            found[path + f.name] = known
    return found
