"""Waiting for what other processes do, and finding them. No test may depend on how fast the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.support.settings import PATIENCE_S

T = TypeVar("T")


def until(true: Callable[[], T], said: Callable[[], object] = str) -> T:
    """What ``true`` gives, once that is true; not for ever: ``said()`` then tells what there was instead."""
    deadline = time.monotonic() + PATIENCE_S
    while not (result := true()):
        assert time.monotonic() < deadline, f"waited in vain:\n{said()}"
        time.sleep(0.02)
    return result


def processes_of(name: str | Path) -> dict[int, str]:
    """The beginning of each process's command line, by its id, that has ``name`` in this or in its environment."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(name).encode() in words:
            found[int(process.name)] = words.decode(errors="replace")[:200]
    return found
