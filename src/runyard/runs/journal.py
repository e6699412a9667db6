"""The append-only journal of a run, ``metrics.jsonl``: the record of what happened.

One JSON object per line: ``{"event": ..., "t": unix seconds, ...}``. One process writes it (rank 0), and anyone may
read it at any time. A crash can lose the line being written and nothing before it; the next line is complete again. A
process that takes over a run from a writer that may still be alive replaces the file: follow it by name (``tail -F``).
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from runyard.files import open_append, read_within, sync_folder

Row = dict[str, Any]
MAX_JOURNAL_BYTES = 2**30  # a million lines need a fifth of it
DECODER = json.JSONDecoder(parse_constant=lambda _: None)  # shared: creating one costs more than decoding a line


class Journal:
    """Appends to ``path``, which need not exist. Each line is on disk when ``write`` returns. Any thread may write.

    ``check`` is called before each line, once the file is open, and raises if this process may no longer write.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        self.path, self._check = Path(path), check
        self._lock = threading.Lock()

    def write(self, event: str, **fields: Any) -> None:
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


def read_journal(path: Path) -> tuple[list[Row], int]:
    """Return the rows in order and the number of damaged lines (no JSON object with an event); no rows without a file.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger than any journal.
    """
    try:
        content = read_within(Path(path).parent, Path(path).name, max_bytes=MAX_JOURNAL_BYTES)
    except FileNotFoundError:
        return [], 0
    rows: list[Row] = []
    damaged_lines = 0
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        try:
            row = DECODER.decode(line.decode())
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and isinstance(row.get("event"), str):
            rows.append(row)
        else:
            damaged_lines += 1
    return rows, damaged_lines


def epochs(rows: Iterable[Row]) -> list[Row]:
    """Return the ``epoch`` rows by rising epoch; of an epoch that a resumed run repeated, the last."""
    last: dict[int, Row] = {}
    for row in rows:
        epoch = row.get("epoch")
        if row.get("event") == "epoch" and isinstance(epoch, int) and not isinstance(epoch, bool):
            last[epoch] = row
    return [last[epoch] for epoch in sorted(last)]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value


def _ends_mid_line(file: Any) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) != b"\n")
