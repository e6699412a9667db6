"""Text for a terminal: what came from files and names of others may hold characters that steer it."""

from __future__ import annotations

import re
from typing import Any, TextIO

# Control characters but for line breaks and tabs; line separators; what turns the direction of writing; surrogates.
CONTROL_CHARACTERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Characters that steer a terminal, or that it cannot print, written out: \x1b and so on."""
    return CONTROL_CHARACTERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PrintableStream:
    """A stream to a terminal or a pipe through which nothing steers the terminal.

    Rich, which has to, finds the stream itself by ``rich_proxied_file``: what it is given is made ``printable`` first.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)
