"""Formats tables for a terminal of any width and for Markdown, and numbers so that they line up."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runyard.printable import printable
from runyard.runs.narrative import format_duration

MISSING = "–"
COLUMN_GAP = "  "
MIN_CELL = 30  # a cell of so many characters is never cut, so that a run's id can be copied
MAX_FIRST_CELL = 40  # characters of a cell in the first column
MIN_HEADING = 9  # characters that a heading may take before it is broken over lines


@dataclass(frozen=True)
class Column:
    """A heading and its cells as formatted text; numbers are ``right_aligned``."""

    heading: str
    cells: list[str]
    right_aligned: bool = True


def terminal_width() -> int:
    """Return the width of the terminal in characters, or the value of COLUMNS; 120 without a terminal."""
    return shutil.get_terminal_size((120, 40)).columns


def text_table(columns: Sequence[Column], width: int, heads: int = 1) -> str:
    """Return the table, at most ``width`` wide: further columns go below, after the first ``heads`` columns again."""
    first = [_shortened(column, min(MAX_FIRST_CELL, max(MIN_CELL, width // 3))) for column in columns[:heads]]
    blocks: list[list[Column]] = [[*first]]
    for column in (_shortened(column, max(MIN_CELL, width // 4)) for column in columns[heads:]):
        if len(blocks[-1]) > heads and _wide([*blocks[-1], column]) > width:
            blocks.append([*first])
        blocks[-1].append(column)
    return "\n\n".join(_block(block) for block in blocks)


def markdown(columns: Sequence[Column]) -> str:
    """Return the columns as a Markdown table with uncut cells."""
    rows = [[column.heading for column in columns], ["--:" if column.right_aligned else ":--" for column in columns]]
    rows += [[column.cells[index].strip() for column in columns] for index in range(len(columns[0].cells))]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def as_csv(lines: Sequence[Mapping[str, object]]) -> str:
    """Return mappings with equal keys as CSV with a header; None becomes an empty field."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def on_one_line(text: str) -> str:
    r"""Return the text with line breaks and other unprintable characters written as \n, \x1b and so on."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def shorten(texts: Sequence[str], max_length: int) -> list[str]:
    """Cut the middle out of texts longer than ``max_length`` characters, but keep different texts different."""
    length = max_length
    while True:
        cut = [_middle_cut(text, length) for text in texts]
        if len(set(cut)) == len(set(texts)):
            return cut
        length += 1


def format_percents(values: Sequence[float], spreads: Sequence[float] | None = None) -> list[str]:
    """Return fractions of 1 as percentages with two digits, and ± the spread if known; the decimal points line up."""
    means = ["" if math.isnan(v) else f"{100 * v:.2f}" for v in values]
    if spreads is None:
        return [mean or MISSING for mean in means]
    suffixes = ["" if math.isnan(s) else f" ± {100 * s:.2f}" for s in spreads]
    longest = max(map(len, suffixes), default=0)
    return [(mean or MISSING) + suffix.ljust(longest) for mean, suffix in zip(means, suffixes, strict=True)]


def format_numbers(values: Sequence[float]) -> list[str]:
    """Return numbers with as many digits as the largest needs: 12,345 or 3.21 or 0.0042."""
    finite = [abs(v) for v in values if math.isfinite(v)]
    largest = max(finite, default=0.0)
    if all(v == int(v) for v in finite):
        digits = 0
    else:
        digits = 0 if largest >= 1000 else max(1, 2 - math.floor(math.log10(largest))) if largest else 0
    return [f"{v:,.{digits}f}" if math.isfinite(v) else MISSING for v in values]


def format_durations(values: Sequence[float]) -> list[str]:
    """Return durations in seconds as h:mm:ss."""
    return [format_duration(v) if math.isfinite(v) else MISSING for v in values]


def format_p_value(p: float) -> str:
    """Return a p value with two significant digits, or "<0.0001"."""
    return "<0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def _middle_cut(text: str, max_length: int) -> str:
    if len(text) <= max_length:
        return text
    end = (max_length - 1) // 2
    return f"{text[: max_length - 1 - end]}…{text[len(text) - end :]}"


def _shortened(column: Column, max_length: int) -> Column:
    return Column(column.heading, shorten(column.cells, max_length), column.right_aligned)


def _heading(column: Column) -> list[str]:
    """Break the heading into lines at spaces and after dots and underscores if the cells are narrower."""
    width = max([MIN_HEADING, *map(len, column.cells)])
    lines = [""]
    for part in re.findall(r"[^\s._]+[._]?|[._]|\s+", column.heading):
        if lines[-1] and len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return [line.strip() for line in lines]


def _width(column: Column) -> int:
    return max(map(len, [*_heading(column), *column.cells]))


def _wide(columns: Sequence[Column]) -> int:
    return sum(map(_width, columns)) + len(COLUMN_GAP) * (len(columns) - 1)


def _block(columns: Sequence[Column]) -> str:
    headings = [_heading(column) for column in columns]
    height = max(map(len, headings))
    lines = [[([""] * (height - len(h)) + h)[index] for h in headings] for index in range(height)]
    lines.append(["─" * _width(column) for column in columns])
    lines += [[column.cells[index] for column in columns] for index in range(len(columns[0].cells))]
    return "\n".join(
        COLUMN_GAP.join(
            cell.rjust(_width(column)) if column.right_aligned else cell.ljust(_width(column))
            for cell, column in zip(line, columns, strict=True)
        ).rstrip()
        for line in lines
    )
