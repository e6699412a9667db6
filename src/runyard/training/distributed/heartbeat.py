"""Each rank publishes its current source line every few seconds, so that a hung rank and its location can be named."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from pathlib import Path

import torch.distributed as dist

HEARTBEAT_INTERVAL_S = 5.0
PACKAGE_ROOT = f"{Path(__file__).parents[2]}/"  # this package's sources


class Heartbeat:
    """A thread that writes to the store which source line this rank is in, and since when.

    It has its own connection, since an exchange may block the other one for long. It ends with the store.
    """

    def __init__(self, store: dist.Store, rank: int) -> None:
        self._store, self._rank = store.clone(), rank  # type: ignore[attr-defined]
        self._main, self._stop_event = threading.main_thread().ident, threading.Event()
        self._location, self._since = "", time.time()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Returns within a second, even if the store hangs."""
        self._stop_event.set()
        self._thread.join(1.0)

    def _beat(self) -> None:
        with contextlib.suppress(RuntimeError):  # rank 0 has ended, and the store with it
            while not self._stop_event.wait(HEARTBEAT_INTERVAL_S):
                location = _innermost_frame(self._main)
                if location != self._location:
                    self._location, self._since = location, time.time()
                beat = {"t": time.time(), "since": self._since, "at": location}
                self._store.set(f"beat/{self._rank}", json.dumps(beat))


def describe_rank(store: dist.Store, rank: int) -> str:
    """Describe where ``rank`` was at its last heartbeat; empty if there was none."""
    if not store.check([f"beat/{rank}"]):
        return ""
    beat, now = json.loads(store.get(f"beat/{rank}")), time.time()
    if now - beat["t"] > 3 * HEARTBEAT_INTERVAL_S:
        return f"rank {rank} has been silent for {now - beat['t']:.0f} s, stopped or cut off; it was at {beat['at']}"
    return f"rank {rank} has been at {beat['at']} for {now - beat['since']:.0f} s"


def _innermost_frame(thread: int | None) -> str:
    """Return the innermost line of this package that ``thread`` is in, and the function that it waits for."""
    frame = sys._current_frames().get(thread or 0)
    called = ""
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE_ROOT):
        called = called or f" ({frame.f_code.co_name})"
        frame = frame.f_back
    if frame is None:
        return "?"
    return f"{frame.f_code.co_filename.removeprefix(PACKAGE_ROOT)}:{frame.f_lineno}{called}"
