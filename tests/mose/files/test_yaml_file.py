"""Covers YAML before it is expanded: alias bombs, depth, size and broken text are one line; anchors in use stay allowed."""

from pathlib import Path

import pytest

from mose.errors import MoseError
from mose.files.yaml_file import read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    "alias bomb": (BOMB, "more than 50,000 values, aliases expanded"),
    "alias in its own anchor": ("a: &a [*a]", r"alias \*a is inside its own anchor"),
    "deep lists": ("[" * 10_000, "more than 50 levels"),
    "deep mappings": ("\n".join(" " * depth + "a:" for depth in range(600)), "more than 50 levels"),
    "300,000 entries": ("a: [" + "1," * 300_000 + "]", "more than 50,000 values"),
    "a megabyte": ("a: " + "x" * 1_000_000, "more than 1,000,000 bytes"),
    "5,000 digits": ("a: " + "9" * 5000, "a number of 5,000 digits, expected at most 1,000"),
    "not YAML": ("a: [", "not readable YAML"),
    "an object of Python": ("a: !!python/object/apply:os.getpid []", "not readable YAML: could not determine a constructor"),
    "a thirteenth month": ("a: 2020-13-45", "not readable YAML: month must be in 1..12"),
    "a key that is a list": ("? [1]\n: 2", "not readable YAML"),
    "an unknown alias": ("a: *b", "not readable YAML"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_yaml_is_one_line(name: str, tmp_path: Path) -> None:
    text, message = BAD[name]
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(MoseError, match=message) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_truncated_utf_8(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes("a: é".encode()[:-1])
    with pytest.raises(MoseError, match=r"run\.yaml: byte 3 is not UTF-8"):
        read_yaml(tmp_path / "run.yaml")


def test_anchors_in_use_are_read(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("a: &a {x: 1, y: [2, 3]}\nb: *a\nc: {<<: *a, y: 4}\n")
    assert read_yaml(tmp_path / "run.yaml")["c"] == {"x": 1, "y": 4}
