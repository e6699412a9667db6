"""Gives text settings the text that stands in a file of ``configs/``: YAML reads 2024_07 as 202407, and 0123 as 83."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from runyard.config.overrides import TIME_SETTING, setting_types
from runyard.installation import CONFIGS, cluster_profiles


def restore_texts(values: dict[str, Any]) -> None:
    """Put the text as written in place of numbers, and of words like ``on``, in the text settings of ``values``.

    In a mapping, whose values may be true or false, that is done for numbers. What the command line gives is text.
    """
    types = setting_types()
    for name in (*types.texts, *types.mappings, TIME_SETTING):
        *groups, leaf = name.split(".")
        holder: Any = values
        for group in groups:
            holder = holder.get(group) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or leaf not in holder:
            continue
        if isinstance(entries := holder[leaf], dict):
            for key, value in entries.items():
                if not isinstance(value, bool):
                    entries[key] = _as_written(value, [*groups, leaf, key])
        else:
            holder[leaf] = _as_written(entries, [*groups, leaf])


def _as_written(value: object, path: list[str]) -> object:
    items = value if isinstance(value, list) else [value]
    if not any(isinstance(item, int | float) for item in items):
        return value
    for node in _nodes(path):
        written = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if [_read(item) for item in written] == items:
            texts = [n.value if isinstance(i, int | float) else i for n, i in zip(written, items, strict=True)]
            return texts if isinstance(value, list) else texts[0]
    return value


def _nodes(path: list[str]) -> Iterator[yaml.Node]:
    """Yield what stands at ``path`` in the files that may give it, the last that is merged first."""
    for file in sorted((CONFIGS / "experiment").glob("*.yaml")):
        yield from _nodes_of(file, path)
    group = cluster_profiles() if path[0] == "cluster" else sorted((CONFIGS / path[0]).glob("*.yaml"))
    for file in group if len(path) > 1 else ():
        yield from _nodes_of(file, path[1:])
    yield from _nodes_of(CONFIGS / "train.yaml", path)


def _nodes_of(file: Path, path: list[str]) -> Iterator[yaml.Node]:
    node = yaml.compose(file.read_text(), Loader=yaml.SafeLoader)
    for key in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        node = next((value for name, value in pairs if name.value == key), None)
    if node is not None:
        yield node


def _read(node: yaml.Node) -> object:
    """Return the value that OmegaConf reads, whose numbers differ from YAML's."""
    return (
        OmegaConf.select(OmegaConf.create(f"value: {node.value}"), "value")
        if isinstance(node, yaml.ScalarNode)
        else None
    )
