"""All promises, in the order of the page."""

from __future__ import annotations

from importlib import import_module

from tests.torture.promise import Promise

NAMES = (  # a file each
    "betons", "command_lines", "corrupt", "cut_saves", "foreign_checkpoints", "full_disk", "hung", "killed", "leaks",
    "on_slurm", "one_writer", "other_users", "permissions", "planted_keys", "scale", "stopped", "submitted_code",
    "tracking_trouble",
)  # fmt: skip
_found: list[Promise] = [import_module(f"tests.torture.{name}").PROMISE for name in NAMES]
PROMISES = tuple(sorted(_found, key=lambda promise: promise.number))
