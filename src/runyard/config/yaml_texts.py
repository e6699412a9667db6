"""Gives text settings the text that stands in a file of ``configs/``: YAML reads 2024_07 as 202407, and 0123 as 83."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from runyard.config.overrides import TIME_SETTING, setting_types
from runyard.installation import CONFIGS, own_configs


def restore_texts(values: dict[Any, Any], words: list[str]) -> None:
    """Put the text as written in place of numbers, and of words like ``on``, in the text settings of ``values``.

    In a mapping, whose values may be true or false, that is done for numbers. Hydra must be initialized, and have
    composed ``values``, in which references stand as written, with the overrides ``words``.
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
                    entries[key] = _as_written(value, [*groups, leaf, key], words)
        else:
            holder[leaf] = _as_written(entries, [*groups, leaf], words)


def _as_written(value: object, path: list[str], words: list[str]) -> object:
    items = value if isinstance(value, list) else [value]
    if not any(isinstance(item, int | float) for item in items) or (node := _node(path, words)) is None:
        return value
    written = node.value if isinstance(node, yaml.SequenceNode) else [node]
    texts = [n.value if isinstance(item, int | float) else item for n, item in zip(written, items, strict=True)]
    return texts if isinstance(value, list) else texts[0]


def _node(path: list[str], words: list[str]) -> yaml.Node | None:
    """Return what stands at ``path`` in the last of the composed files that has it: it is merged over the others."""
    composed = GlobalHydra.instance().config_loader().compute_defaults_list("train", words, RunMode.RUN)
    for part in reversed(composed.defaults):
        package = part.package.split(".") if part.package else []
        files = (folder / f"{part.config_path}.yaml" for folder in (CONFIGS, own_configs()) if folder is not None)
        if path[: len(package)] != package or (file := next(filter(Path.exists, files), None)) is None:
            continue
        node = yaml.compose(file.read_text(), Loader=yaml.SafeLoader)
        for key in path[len(package) :]:
            pairs = node.value if isinstance(node, yaml.MappingNode) else ()
            node = next((value for name, value in pairs if name.value == key), None)
        if node is not None:
            return node
    return None
