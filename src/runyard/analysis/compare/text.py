"""Columns of text for a terminal of any width, for Markdown, and numbers written so that they line up."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runyard.printable import printable
from runyard.runs.narrative import format_duration

MISSING = "–"
COLUMN_GAP = "  "
MIN_CELL, MAX_FIRST_CELL = (
    30,
    40,
)  # characters of a cell that are never cut (a run's id can be copied), and at most of the first
MIN_HEADING = 9  # characters that a heading may take before it is broken over lines


@dataclass(frozen=True)
class Column:
    """A heading and its cells, all finished text. ``right_aligned`` for numbers."""

    heading: str
    cells: list[str]
    right_aligned: bool = True


def terminal_width() -> int:
    """Of this terminal, or what COLUMNS says; 120 where there is none."""
    return shutil.get_terminal_size((120, 40)).columns


def text_table(columns: Sequence[Column], width: int, heads: int = 1) -> str:
    """The table, at most ``width`` wide: what does not fit goes below, with the first ``heads`` columns again."""
    first = [_shortened(column, min(MAX_FIRST_CELL, max(MIN_CELL, width // 3))) for column in columns[:heads]]
    blocks: list[list[Column]] = [[*first]]
    for column in (_shortened(column, max(MIN_CELL, width // 4)) for column in columns[heads:]):
        if len(blocks[-1]) > heads and _wide([*blocks[-1], column]) > width:
            blocks.append([*first])
        blocks[-1].append(column)
    return "\n\n".join(_block(block) for block in blocks)


def markdown(columns: Sequence[Column]) -> str:
    """The same as a Markdown table, uncut."""
    rows = [[column.heading for column in columns], ["--:" if column.right_aligned else ":--" for column in columns]]
    rows += [[column.cells[index].strip() for column in columns] for index in range(len(columns[0].cells))]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def as_csv(lines: Sequence[dict[str, Any]]) -> str:
    """Mappings with the same keys as CSV with a header; None is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def on_one_line(text: str) -> str:
    r"""Line breaks and other characters that steer a terminal, or that it cannot print, as \n, \x1b and so on."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def shorten(texts: Sequence[str], max_length: int) -> list[str]:
    """Texts of at most ``most`` characters: the middle of long ones is cut out, but never what tells two apart."""
    length = max_length
    while True:
        cut = [_middle_cut(text, length) for text in texts]
        if len(set(cut)) == len(set(texts)):
            return cut
        length += 1


def format_percents(values: Sequence[float], spreads: Sequence[float] | None = None) -> list[str]:
    """Parts of 1 as percentages with two digits, with ± where there is a spread; the points line up."""
    means = ["" if math.isnan(v) else f"{100 * v:.2f}" for v in values]
    if spreads is None:
        return [mean or MISSING for mean in means]
    suffixes = ["" if math.isnan(s) else f" ± {100 * s:.2f}" for s in spreads]
    longest = max(map(len, suffixes), default=0)
    return [(mean or MISSING) + suffix.ljust(longest) for mean, suffix in zip(means, suffixes, strict=True)]


def format_numbers(values: Sequence[float]) -> list[str]:
    """With as many digits for all as the largest needs to be read: 12,345 or 3.21 or 0.0042."""
    finite = [abs(v) for v in values if math.isfinite(v)]
    largest = max(finite, default=0.0)
    if all(v == int(v) for v in finite):
        digits = 0
    else:
        digits = 0 if largest >= 1000 else max(1, 2 - math.floor(math.log10(largest))) if largest else 0
    return [f"{v:,.{digits}f}" if math.isfinite(v) else MISSING for v in values]


def format_durations(values: Sequence[float]) -> list[str]:
    """Seconds as h:mm:ss."""
    return [format_duration(v) if math.isfinite(v) else MISSING for v in values]


def format_p_value(p: float) -> str:
    """A p value: two digits that count, and no more zeros than anyone reads."""
    return "<0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def _middle_cut(text: str, max_length: int) -> str:
    if len(text) <= max_length:
        return text
    end = (max_length - 1) // 2
    return f"{text[: max_length - 1 - end]}…{text[len(text) - end :]}"


def _shortened(column: Column, max_length: int) -> Column:
    return Column(column.heading, shorten(column.cells, max_length), column.right_aligned)


def _heading(column: Column) -> list[str]:
    """The heading's lines: broken behind dots and underscores and at spaces where the cells are narrower."""
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
