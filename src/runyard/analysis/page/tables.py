"""Formats columns and sentences as escaped HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from runyard.analysis.compare.text import Column
from runyard.analysis.figures.group_style import GroupStyle

MOST_ROWS = 15  # longer tables scroll
LONG_NAME = 24  # characters; longer names get more of the table's width, to break over fewer lines
LONG_NUMBER = re.compile(r"-?\d+\.\d{6,}(e-?\d+)?")  # sampled by a sweep; its tooltip shows all digits


class Markup(str):
    """Finished HTML; any other text is escaped."""


def html_table(columns: Sequence[Column], styles: Sequence[GroupStyle] = ()) -> Markup:
    """Return a table that scrolls on a narrow page. ``styles`` has the style of each row, if rows are groups."""
    head = "".join(
        f'<th scope="col" class="{_cell_class(c)}">{escape(c.heading.replace("- ", ""))}</th>' for c in columns
    )
    rows = ""
    for index in range(len(columns[0].cells)):
        swatch = _swatch(styles[index]) if styles else ""
        name = columns[0].cells[index].strip()
        css_class = _cell_class(columns[0]) + " wide" * (len(name) > LONG_NAME)
        rows += f'<tr><th class="{css_class}" scope="row">{swatch}{_breakable(name)}</th>'
        rows += "".join(_cell(column, column.cells[index].strip()) for column in columns[1:]) + "</tr>"
    return Markup(
        f'<div class="scroll{" long" * (len(columns[0].cells) > MOST_ROWS)}" tabindex="0"><table class="results">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def paragraphs(texts: Sequence[str]) -> str:
    """Return sentences and tables, one below the other."""
    return "".join(text if isinstance(text, Markup) else f'<p class="note">{escape(text)}</p>' for text in texts)


def _cell_class(column: Column) -> str:
    return "n" if column.right_aligned else "s"


def _cell(column: Column, text: str) -> str:
    if LONG_NUMBER.fullmatch(text):
        return f'<td class="{_cell_class(column)}" title="{text}">{float(text):.4g}</td>'
    return f'<td class="{_cell_class(column)}">{escape(text)}</td>'


def _swatch(style: GroupStyle) -> str:
    return f'<span class="swatch dot" style="--light:{style.light};--dark:{style.dark}" aria-hidden="true">●</span> '


def _breakable(name: str) -> str:
    """Allow line breaks in a name after underscores, hyphens, dots and slashes."""
    return "<wbr>".join(map(escape, re.split(r"(?<=[_\-./])", name)))
