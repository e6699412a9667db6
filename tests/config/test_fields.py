"""Plain values become checked dataclasses, or are refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from runyard.config.fields import (
    config_to_dict,
    format_literal,
    read_dataclass,
    setting_names,
    unknown_name_message,
)
from runyard.config.setting import recipe, settings_of
from runyard.errors import UserError


@dataclass(frozen=True)
class Inner:
    rate: float = recipe("A rate", exclusive_minimum=0, maximum=1)


@dataclass(frozen=True)
class Outer:
    count: int = recipe("How many", minimum=1, exclusive_maximum=10)
    word: str = recipe("A word")
    kind: Literal["a", "b"] = recipe("One of two")
    on: bool = recipe("Or off")
    numbers: list[int] | None = recipe("Some numbers")
    limit: float | None = recipe("A limit", minimum=0)
    inner: Inner


@dataclass(frozen=True)
class Open:
    name: str = recipe("A name")
    rest: dict[str, Any] = recipe("Whatever else there is", rest=True)


GOOD: dict[str, Any] = {
    "count": 3,
    "word": "w",
    "kind": "a",
    "on": True,
    "numbers": [1, 2],
    "limit": None,
    "inner": {"rate": 1},
}


def test_what_is_read_is_what_was_written() -> None:
    made = read_dataclass(Outer, GOOD)
    assert made == Outer(3, "w", "a", True, [1, 2], None, Inner(1.0))
    assert read_dataclass(Outer, config_to_dict(made)) == made
    assert isinstance(made.inner.rate, float)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"count": 1.0}, "count=1.0: expected a whole number"),
        ({"count": True}, "count=true: expected a whole number"),
        ({"count": None}, "count=null: expected a whole number"),
        ({"count": "3"}, "count='3': expected a whole number"),
        ({"count": 0}, "count=0: expected a whole number at least 1 and below 10"),
        ({"count": 10}, "count=10: expected a whole number at least 1 and below 10"),
        ({"count": float("nan")}, "count=nan: expected a whole number"),
        ({"word": 3}, "word=3: expected text"),
        ({"word": ""}, "word='': expected text that is not empty and has no control characters"),
        ({"word": "a\nb"}, r"word='a\nb': expected text that is not empty and has no control characters"),
        ({"kind": "c"}, "kind=c: expected one of a, b"),
        ({"kind": ["a"]}, "kind=[a]: expected one of a, b"),
        ({"on": 1}, "on=1: expected true or false"),
        ({"on": "yes"}, "on=yes: expected true or false"),
        ({"numbers": 3}, "numbers=3: expected a list, such as numbers=[a,b]"),
        ({"numbers": "12"}, "numbers='12': expected a list, such as numbers=[a,b]"),
        ({"numbers": [1, "x"]}, "numbers[1]=x: expected a whole number"),
        ({"limit": float("inf")}, "limit=inf: expected a finite number"),
        ({"limit": float("nan")}, "limit=nan: expected a finite number"),
        ({"limit": 10**400}, "limit=inf: expected a finite number"),
        ({"limit": -1}, "limit=-1.0: expected a number at least 0"),
        ({"inner": 3}, "inner=3: expected a group of settings (inner.NAME=VALUE)"),
        ({"inner": {"rate": 0}}, "inner.rate=0.0: expected a number above 0 and at most 1"),
        ({"inner": {"rate": 2}}, "inner.rate=2.0: expected a number above 0 and at most 1"),
        ({"inner": {"rte": 1}}, "unknown setting inner.rte: did you mean inner.rate?"),
        ({"inner": {}}, "inner.rate is missing: A rate; add inner.rate=VALUE"),
        ({"conut": 1}, "unknown setting conut: did you mean count?"),
        ({3: 1}, "unknown setting 3: known: count, word, kind, on, numbers, limit, inner"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_what_it_is_and_what_was_expected(
    changed: dict[Any, Any], message: str
) -> None:
    with pytest.raises(UserError) as refusal:
        read_dataclass(Outer, GOOD | changed)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    "changed",
    [
        {"count": 9},
        {"count": 1},
        {"numbers": None},
        {"numbers": []},
        {"limit": 0},
        {"inner": {"rate": 1}},
        {"word": "a b"},
    ],
)
def test_values_at_the_edge_of_a_range_are_taken(changed: dict[str, Any]) -> None:
    read_dataclass(Outer, GOOD | changed)


@pytest.mark.parametrize("lacking", list(GOOD))
def test_every_setting_must_be_given(lacking: str) -> None:
    with pytest.raises(UserError, match=f"{lacking} is missing"):
        read_dataclass(Outer, {name: value for name, value in GOOD.items() if name != lacking})


def test_a_rest_takes_what_has_no_field_and_gives_it_back() -> None:
    made = read_dataclass(Open, {"name": "n", "depth": 3})
    assert made.rest == {"depth": 3}
    assert config_to_dict(made) == {"name": "n", "depth": 3}


def test_names_are_dotted_and_in_order() -> None:
    assert setting_names(Outer) == ["count", "word", "kind", "on", "numbers", "limit", "inner", "inner.rate"]


def test_a_setting_that_says_nothing_of_itself_is_refused_when_the_schema_is_read() -> None:
    @dataclass(frozen=True)
    class Mute:
        rate: float = 0.1

    assert {name: known.doc for name, known in settings_of(Inner).items()} == {"rate": "A rate"}, "the control"
    with pytest.raises(TypeError, match=r"^group\.rate in Mute: write recipe\(...\)"):
        settings_of(Mute, "group.")


def test_a_leaf_is_found_in_its_group_and_a_long_list_is_not_recited() -> None:
    assert unknown_name_message("rate", ["count", "inner.rate"]) == "unknown setting rate: did you mean inner.rate?"
    many = [f"setting{i}" for i in range(50)]
    assert unknown_name_message("qqq", many) == "unknown setting qqq: `runyard settings` lists all settings"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ([1, None], "[1, null]"),
        ("adam", "adam"),
        ("null", "'null'"),
        ("a b", "'a b'"),
        (1e-3, "0.001"),
    ],
)
def test_a_message_writes_values_as_the_command_line_has_them(value: Any, text: str) -> None:
    assert format_literal(value) == text


def test_a_refusal_is_one_printable_line_whatever_is_in_it() -> None:
    assert str(UserError("a\nb\x1b[31m\udcff é")) == r"a\nb\x1b[31m\udcff é"
