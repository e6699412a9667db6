"""All promises, in the order of the page."""

from __future__ import annotations

from tests.torture import (
    betons,
    command_lines,
    corrupt,
    cut_saves,
    foreign_checkpoints,
    full_disk,
    hung,
    killed,
    leaks,
    on_slurm,
    one_writer,
    other_users,
    permissions,
    planted_keys,
    scale,
    stopped,
    submitted_code,
    tracking_trouble,
)

MODULES = (
    betons,
    command_lines,
    corrupt,
    cut_saves,
    foreign_checkpoints,
    full_disk,
    hung,
    killed,
    leaks,
    on_slurm,
    one_writer,
    other_users,
    permissions,
    planted_keys,
    scale,
    stopped,
    submitted_code,
    tracking_trouble,
)
PROMISES = tuple(sorted((module.PROMISE for module in MODULES), key=lambda promise: promise.number))
