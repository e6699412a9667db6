"""Formats columns as HTML tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup

from runyard.analysis.compare.text import Column
from runyard.analysis.figures.group_style import GroupStyle
from runyard.analysis.html import render_template

MOST_ROWS = 15  # longer tables scroll
LONG_NAME = 24  # characters; longer names get more of the table's width, to break over fewer lines
LONG_NUMBER = re.compile(r"-?\d+\.\d{6,}(e-?\d+)?")  # sampled by a sweep; its tooltip shows all digits


def html_table(columns: Sequence[Column], styles: Sequence[GroupStyle] = ()) -> Markup:
    """Return a table that scrolls on a narrow page. ``styles`` has the style of each row, if rows are groups."""
    return render_template(
        "page/table.html",
        columns=columns,
        styles=styles,
        most_rows=MOST_ROWS,
        long_name=LONG_NAME,
        is_long_number=LONG_NUMBER.fullmatch,
        name_parts=lambda name: re.split(r"(?<=[_\-./])", name),  # between them a line may break
    )
