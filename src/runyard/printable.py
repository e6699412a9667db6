"""Text that is safe to print: names and files of other users may contain characters that control the terminal."""

from __future__ import annotations

import re
from typing import Any, TextIO

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
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)
