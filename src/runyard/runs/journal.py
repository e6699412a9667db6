"""The append-only journal of a run, ``metrics.jsonl``: the record of what happened.

One JSON object per line: ``{"event": ..., "t": unix seconds, ...}``. One process writes it (rank 0), and anyone may
read it at any time. A crash can lose the line being written and nothing before it; the next line is complete again. A
process that takes over a run from a writer that may still be alive replaces the file: follow it by name (``tail -F``).
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from runyard.files import open_append, open_within, sync_folder
from runyard.runs.events import Event, Row, parse_event

MAX_JOURNAL_BYTES = 2**30  # a million lines need a fifth of it
DECODER = json.JSONDecoder(parse_constant=lambda _: None)  # shared: creating one costs more than decoding a line


class Journal:
    """Appends to ``path``, which need not exist. Each line is on disk when ``write`` returns. Any thread may write.

    ``check`` is called before each line, once the file is open, and raises if this process may no longer write.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        self.path, self._check = Path(path), check
        self._lock = threading.Lock()

    def write(self, event: str, **fields: object) -> None:
        """Append one line. NaN and infinity are stored as null; numpy and tensor scalars and arrays as plain numbers.

        Raises:
            TypeError: a value cannot be written as JSON. Nothing is written then.
            OSError: the disk is full or unwritable, or ``path`` is not a regular file. The next row still starts on a
                line of its own.
        """
        row = {"event": event, "t": round(time.time(), 3), **{key: _plain(value) for key, value in fields.items()}}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        with self._lock:
            new = not self.path.exists()
            with open_append(self.path) as file:  # opened for each line: nothing to close, and children inherit nothing
                if _ends_mid_line(file):
                    line = b"\n" + line
                self._check()
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync_folder(self.path.parent)


class JournalReader:
    """Reads the lines that were appended to a journal since they were last asked for.

    A file that replaced the journal is read from its beginning, without as many lines as were read before.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(path)
        self._file: tuple[int, int] | None = None  # device and inode
        self._offset = self._lines = 0

    def new_lines(self, *, whole: bool = False) -> Iterator[bytes]:
        """Yield the new complete lines; with ``whole`` also a last one that has no end. No file has no lines.

        Raises:
            OSError: the file cannot be read, is not a regular file, or is larger than any journal.
        """
        try:
            file = open_within(self._path.parent, self._path.name)
        except FileNotFoundError:
            return
        with file:
            found, skipped = os.fstat(file.fileno()), 0
            if found.st_size > MAX_JOURNAL_BYTES:
                message = f"{found.st_size:,} bytes, expected at most {MAX_JOURNAL_BYTES:,}"
                raise OSError(errno.EFBIG, message, str(self._path))
            if (found.st_dev, found.st_ino) != self._file or found.st_size < self._offset:
                self._file, skipped, self._offset, self._lines = (found.st_dev, found.st_ino), self._lines, 0, 0
            file.seek(self._offset)
            while self._offset < found.st_size and (line := file.readline()):
                if not line.endswith(b"\n") and not whole:
                    return  # being written
                self._offset += len(line)
                self._lines += 1
                if self._lines > skipped:
                    yield line

    def new_events(self) -> Iterator[Event]:
        """Yield the events of the new complete lines; damaged lines are left out."""
        return (parse_event(row) for line in self.new_lines() if (row := decode_line(line)) is not None)


def read_journal(path: Path) -> tuple[list[Row], int]:
    """Return the rows in order and the number of damaged lines (no JSON object with an event); no rows without a file.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger than any journal.
    """
    rows: list[Row] = []
    damaged_lines = 0
    for line in JournalReader(path).new_lines(whole=True):
        if (row := decode_line(line)) is not None:
            rows.append(row)
        else:
            damaged_lines += not line.isspace()
    return rows, damaged_lines


def read_events(path: Path) -> list[Event]:
    """Return the events in order, without damaged lines; see ``read_journal``."""
    return [parse_event(row) for row in read_journal(path)[0]]


def decode_line(line: bytes) -> Row | None:
    """Return the row of a line, None if it is damaged."""
    try:
        row = DECODER.decode(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("event"), str) else None


def epochs(rows: Iterable[Row]) -> list[Row]:
    """Return the ``epoch`` rows by rising epoch; of an epoch that a resumed run repeated, the last."""
    last: dict[int, Row] = {}
    for row in rows:
        epoch = row.get("epoch")
        if row.get("event") == "epoch" and isinstance(epoch, int) and not isinstance(epoch, bool):
            last[epoch] = row
    return [last[epoch] for epoch in sorted(last)]


def _plain(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value


def _ends_mid_line(file: BinaryIO) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) != b"\n")
