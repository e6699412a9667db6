"""Tables fit the terminal, lose nothing, and their numbers line up."""

from __future__ import annotations

import csv
import io
import math

import pytest

from runyard.analysis.compare.text import (
    Column,
    as_csv,
    format_numbers,
    format_p_value,
    format_percents,
    markdown,
    shorten,
    text_table,
)

NAN = float("nan")
COLUMNS = [
    Column("run", [f"a-name-of-some-length-{at}" for at in range(3)], right_aligned=False),
    *(Column(f"group.setting_number_{at}", ["1", "22", f"value-{at}"]) for at in range(12)),
]


@pytest.mark.parametrize("width", [40, 80, 120, 200, 400])
def test_a_table_is_no_wider_than_the_terminal_and_loses_no_column(width: int) -> None:
    text = text_table(COLUMNS, width)
    assert max(map(len, text.splitlines())) <= width
    for at in range(12):
        assert f"value-{at}" in text.split()
    blocks = text.split("\n\n")
    assert all("a-name-of-some-length-2" in block for block in blocks)
    assert (len(blocks) == 1) is (width >= 200)


def test_long_headings_are_broken_over_lines_and_say_the_same() -> None:
    text = text_table([Column("run", ["a"]), Column("schedule.final_lr_fraction", ["0"])], 80)
    above = [
        line.split()[-1]
        for line in text.splitlines()[
            : text.splitlines().index(next(line for line in text.splitlines() if line.startswith("─")))
        ]
    ]
    assert "".join(above) == "schedule.final_lr_fraction"


def test_numbers_stand_right_and_words_left() -> None:
    lines = text_table([Column("run", ["a", "bb"], right_aligned=False), Column("n", ["1", "100"])], 80).splitlines()
    assert lines[2:] == ["a      1", "bb   100"]


def test_shortening_never_makes_two_names_one() -> None:
    names = [f"20260901-000000-the-same-long-name-{at:04d}-and-the-same-end" for at in range(50)]
    cut = shorten(names, 20)
    assert len(set(cut)) == 50
    assert all(name[:5] == short[:5] and name[-5:] == short[-5:] for name, short in zip(names, cut, strict=True))
    assert shorten(["short", "a" * 30], 20)[0] == "short"
    assert len(shorten(["a" * 30], 20)[0]) == 20


def test_percentages_line_up_at_the_point_with_and_without_a_spread() -> None:
    cells = format_percents([0.9231, 0.05, NAN], [0.0012, NAN, NAN])
    assert cells == ["92.31 ± 0.12", "5.00       ", "–       "]
    width = max(map(len, cells))
    assert len({cell.rjust(width).index(".") for cell in cells if "." in cell}) == 1


@pytest.mark.parametrize(
    ("values", "cells"),
    [
        ([12345.0, 7.0], ["12,345", "7"]),
        ([12345.6], ["12,346"]),
        ([3.21, 0.5], ["3.21", "0.50"]),
        ([0.00421, 0.1], ["0.004", "0.100"]),
        ([0.00421], ["0.00421"]),
        ([NAN, 1.0], ["–", "1"]),
        ([math.inf], ["–"]),
        ([], []),
        ([0.0], ["0"]),
        ([250.25, 1.5], ["250.2", "1.5"]),
    ],
)
def test_a_columns_numbers_have_the_digits_that_its_largest_needs(values: list[float], cells: list[str]) -> None:
    assert format_numbers(values) == cells


@pytest.mark.parametrize(("p", "text"), [(0.5, "0.50"), (0.049, "0.049"), (0.00123, "0.0012"), (1e-9, "<0.0001")])
def test_chances_are_short(p: float, text: str) -> None:
    assert format_p_value(p) == text


def test_markdown_keeps_long_names_and_guards_its_bars() -> None:
    text = markdown([Column("run", ["a|b", "x" * 300], right_aligned=False), Column("n", [" 1", "2 "])])
    assert text.splitlines() == ["| run | n |", "| :-- | --: |", "| a\\|b | 1 |", f"| {'x' * 300} | 2 |"]


def test_csv_is_read_back_whole() -> None:
    lines = [{"a": 'x, "y"', "b": 0.1 + 0.2, "c": None}, {"a": "", "b": 1e-300, "c": "d\ne"}]
    back = list(csv.DictReader(io.StringIO(as_csv(lines))))
    assert [row["a"] for row in back] == ['x, "y"', ""]
    assert [float(row["b"]) for row in back] == [0.1 + 0.2, 1e-300]
    assert [row["c"] for row in back] == ["", "d\ne"]
