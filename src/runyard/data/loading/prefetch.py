"""Prefetching of batches in a background thread, and their transfer to the device."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch

from runyard.data.loading.batch import Batch

_T = TypeVar("_T")
_END = object()


class Prefetch(Generic[_T]):
    """Runs an iterator in a thread, up to ``ahead`` items ahead of the consumer.

    An error in the thread is raised, with its cause, when the next item is requested. A thread that ended silently is
    noticed within a second. ``close`` (or leaving a ``with`` block) stops and joins the thread and closes the iterator.
    """

    def __init__(self, items: Iterator[_T], ahead: int = 3) -> None:
        self._items = items
        self._queue: queue.Queue[object] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="runyard-prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Prefetch[_T]:
        return self

    def __next__(self) -> _T:
        while not self._stop.is_set():
            try:
                item = self._queue.get(timeout=0.5)
            except queue.Empty:
                if not self._thread.is_alive() and self._queue.empty():
                    raise RuntimeError("the thread that reads data ended without an error") from self._error
                continue
            if item is not _END:
                return item  # type: ignore[return-value]
            self.close()
            if self._error is not None:
                raise self._error
        raise StopIteration

    def __enter__(self) -> Prefetch[_T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._enqueue(item):
                    break
        except BaseException as error:
            self._error = error
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
            self._enqueue(_END)

    def _enqueue(self, item: object) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


class Transfer:
    """Copies host batches to ``device``; to a GPU on a separate stream, so that copies overlap with computation."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start_copy(self, batches: list[Batch]) -> tuple[list[Batch], torch.cuda.Event | None]:
        """Start the copies; called in the background thread."""
        if self._stream is None:
            return batches, None
        with torch.cuda.stream(self._stream):
            sent = [Batch(*(t.pin_memory().to(self.device, non_blocking=True) for t in b)) for b in batches]
            return sent, self._stream.record_event()

    def wait_for_copy(self, sent: tuple[list[Batch], torch.cuda.Event | None]) -> list[Batch]:
        """Let the current stream, not the host, wait for the copies; called in the consumer."""
        batches, event = sent
        if event is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            for batch in batches:
                for tensor in batch:
                    tensor.record_stream(stream)
        return batches
