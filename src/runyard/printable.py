"""Text that is safe to print: names and files of other users may contain characters that control the terminal."""

from __future__ import annotations

import io
import re
import sys
from typing import Any, TextIO

from runyard.errors import UserError

# Control characters except newline and tab; line separators; characters that change the text direction; surrogates.
CONTROL_CHARACTERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Escape the characters that control a terminal, or that it cannot print: \x1b and so on."""
    return CONTROL_CHARACTERS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class PrintableStream:
    """A stream to a terminal or a pipe that makes all text ``printable`` first.

    Rich must control the terminal, and finds the original stream by the attribute ``rich_proxied_file``; the text that
    Rich gets is made ``printable`` before.
    """

    def __init__(self, stream: TextIO) -> None:
        is_pythons = stream is sys.__stdout__ or stream is sys.__stderr__
        self.rich_proxied_file = _reopened(stream) if is_pythons and isinstance(stream, io.TextIOWrapper) else stream

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


class _Output(io.FileIO):
    """Standard output or error. On a full disk the rest is lost, which is said once of the output."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self._lost = False

    def write(self, data: Any) -> int:
        if not self._lost:
            try:
                return super().write(data)
            except BrokenPipeError:
                raise
            except OSError as error:
                self._lost = True
                if self.fileno() == 1:
                    raise UserError(
                        f"the standard output cannot be written ({error.strerror})", "send it elsewhere"
                    ) from None
        return len(data)


def _reopened(stream: io.TextIOWrapper) -> TextIO:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(stream.fileno())),
        encoding=stream.encoding,
        errors="backslashreplace",  # an ASCII terminal, or PYTHONIOENCODING
        line_buffering=stream.line_buffering or stream.write_through,
    )
