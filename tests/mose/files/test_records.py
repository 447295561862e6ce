"""Covers records of files: every field is of its annotation's type, and a wrong one is named with its place."""

from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from mose.files.records import from_plain


@dataclass(frozen=True)
class Inner:
    rows: int
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    parts: dict[str, tuple[Inner, ...]]
    done: bool = False
    step: int | None = None
    notes: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)


GOOD: dict[str, Any] = {"name": "x", "parts": {"train": [{"rows": 3}, {"rows": 4, "share": 1}]}, "step": 7, "more": {"a": [1]}}
BAD = [
    ({"name": 3}, "name: 3, expected text"),
    ({"done": 1}, "done: 1, expected true or false"),
    ({"step": "7"}, "step: '7', expected a whole number of at most 64 bits"),
    ({"step": True}, "step: True, expected a whole number"),
    ({"step": 1 << 64}, "step: 18446744073709551616, expected a whole number of at most 64 bits"),
    ({"step": 10**500}, "step: a number of hundreds of digits, expected"),
    ({"parts": []}, "parts: a list, expected an object"),
    ({"parts": {"train": {}}}, r"parts.train: an object, expected a list"),
    ({"parts": {"train": [{"rows": 3}, {"rows": 2.0}]}}, r"parts\.train\[1\]\.rows: 2\.0, expected a whole number"),
    ({"parts": {"train": [{}]}}, r"parts\.train\[0\]\.rows: missing"),
    ({"parts": {"train": [{"rows": 3, "share": None}]}}, r"parts\.train\[0\]\.share: None, expected a number"),
    ({"notes": ["a", 1]}, r"notes\[1\]: 1, expected text"),
    ({"nmae": 1}, "'nmae': unknown field, expected one of name, parts"),
    ({"name": None}, "name: None, expected text"),
]


def test_good_values_make_the_record() -> None:
    made = from_plain(Outer, GOOD)
    assert made == Outer("x", {"train": (Inner(3), Inner(4, 1.0))}, step=7, more={"a": [1]})
    assert isinstance(made.parts["train"][1].share, float)
    assert from_plain(Outer, {**asdict(made), "parts": GOOD["parts"]}) == made


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(change)[:40] for change, _ in BAD])
def test_a_wrong_field_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_plain(Outer, {**GOOD, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [[], "x", None, 3])
def test_something_else_than_an_object(value: Any) -> None:
    with pytest.raises(ValueError, match="the whole: .*expected an object"):
        from_plain(Outer, value)
