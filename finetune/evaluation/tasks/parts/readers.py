"""Checks that all readers of benchmark files share: each fault is one line that names file, line, field and what was expected."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mose.errors import MoseError

# The names under which benchmarks publish what no model may train on.
HELD_OUT_NAMES = ("held_out", "valid", "validation", "dev", "test")


def require_files(task: str, paths: Sequence[Path], names: Sequence[str]) -> None:
    """Refuse another number of files than the task reads.

    Raises:
        MoseError: there are more or fewer.
    """
    if len(paths) != len(names):
        raise MoseError(f"tasks: {task}: {len(paths)} files, expected {len(names)}: {', '.join(names)}")


def text_of(where: str, row: Mapping[str, Any], name: str) -> str:
    """A text field.

    Raises:
        MoseError: it is missing, empty or not text.
    """
    value = row[name]
    if not isinstance(value, str):
        raise MoseError(f"{where}: {name}: {str(value)[:60]!r}, expected text")
    if not value.strip():
        raise MoseError(f"{where}: {name}: empty, expected text")
    return value


def new_id(where: str, name: str, value: str, seen: dict[str, int]) -> None:
    """Enter an id with the next place.

    Raises:
        MoseError: it has been there before.
    """
    if value in seen:
        raise MoseError(f"{where}: {name}: {value[:60]!r} occurs twice, expected ids that differ")
    seen[value] = len(seen)


def check_split(where: str, name: str, found: str, split: str) -> None:
    """Refuse a row of another split than the one to score: a model has trained on it, or it tunes what is scored.

    Raises:
        MoseError: it is one.
    """
    expected = HELD_OUT_NAMES if split == "held_out" else (split,)
    if found not in expected:
        raise MoseError(f"{where}: {name}: split {found[:60]!r}, expected {' or '.join(expected)} (split: {split})")
