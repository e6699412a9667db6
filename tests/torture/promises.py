"""All promises, in the order of the page."""

from __future__ import annotations

from tests.torture import (
    betons,
    corrupt,
    cut_saves,
    foreign_checkpoints,
    killed,
    leaks,
    one_writer,
    permissions,
    scale,
    stopped,
    submitted_code,
)  # fmt: skip

MODULES = (betons, corrupt, cut_saves, foreign_checkpoints, killed, leaks, one_writer, permissions, scale, stopped,
           submitted_code)  # fmt: skip
PROMISES = tuple(sorted((module.PROMISE for module in MODULES), key=lambda promise: promise.number))
