"""Covers the reader of JSON: what is no JSON, or would exhaust stack or memory, is a ValueError with one line."""

import json

import pytest

from mose.files import json_file
from mose.files.json_file import DEEPEST, parse_json

BAD = {
    "lists without end": (b"[" * 100_000, "nested more than 100 deep"),
    "closed lists": (b"[" * 900 + b"]" * 900, "nested more than 100 deep"),
    "objects without end": (b'{"a":' * 100_000, "nested more than 100 deep"),
    "NaN": (b'{"a": NaN}', "NaN is not a number of JSON"),
    "Infinity": (b"[-Infinity]", "-Infinity is not a number of JSON"),
    "a float that overflows": (b'{"a": [1e999]}', "a number is too large for a float"),
    "5,000 digits": (b"1" * 5000, "a number of too many digits"),
    "truncated UTF-8": ('{"a": "é'.encode()[:-1], "byte 7 is not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "byte 0 is not UTF-8"),
    "half of a surrogate pair": (b'{"a": "\\ud800"}', "half of a surrogate pair in a string"),
    "nothing": (b"", "Expecting value"),
    "two values": (b"{} {}", "Extra data"),
    "300,000 entries, the last one open": (b"[" + b'{"a": 1},' * 300_000, "Expecting value"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_text_is_one_line(name: str) -> None:
    content, message = BAD[name]
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 100


def test_values_are_those_of_json() -> None:
    value = {"a": [1, 2.5, True, None, "é \U0001f600"], "b": {}}
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
    deep = json.dumps(0)
    for _ in range(DEEPEST - 1):
        deep = f"[{deep}]"
    parse_json(deep.encode())


def test_a_text_that_is_too_long_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "LARGEST_BYTES", 10)
    with pytest.raises(ValueError, match="11 bytes, expected at most 10"):
        parse_json(b"x" * 11)
