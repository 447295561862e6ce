"""Reads the pairs of a split from one or more files: our parquet, or CodeSearchNet's JSON lines as they are on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mose.dataset.pairs import Pair, read_pairs
from mose.errors import MoseError
from mose.files.json_file import JSON_LINES, json_lines

# CodeSearchNet's names for the splits; its test and validation parts are what no stage may train on.
_SPLITS = {"train": "train", "valid": "held_out", "test": "held_out"}
_FIELDS = ("docstring", "code", "language", "repo", "path", "partition")


def read_pair_files(paths: Sequence[Path], split: str) -> list[Pair]:
    """All pairs of `split`, file after file.

    Raises:
        MoseError: a file is missing, lacks a column, or has no pair of this split.
    """
    return [pair for path in paths for pair in _read(path, split)]


def _read(path: Path, split: str) -> list[Pair]:
    return read_code_search_net(path, split) if path.name.endswith(JSON_LINES) else read_pairs(path, split)


def read_code_search_net(path: Path, split: str) -> list[Pair]:
    """The pairs of `split` of a file in CodeSearchNet's schema; the text is the docstring's first paragraph, on one line.

    Raises:
        MoseError: the file cannot be read, or a line is not JSON, lacks a field or has an empty one, or no pair is left.
    """
    pairs = []
    for where, row in json_lines(path, _FIELDS):
        for name in _FIELDS:
            if not isinstance(row[name], str):
                raise MoseError(f"{where}: {name}: {row[name]!r}, expected text")
        if _SPLITS.get(row["partition"], row["partition"]) == split:
            pairs.append(_pair(row, split, where))
    if not pairs:
        raise MoseError(f"{path}: partition: no line of split {split!r}, expected at least one")
    return pairs


def _pair(row: dict[str, Any], split: str, where: str) -> Pair:
    summary = " ".join(row["docstring"].strip().split("\n\n")[0].split())
    for name, value in (("docstring", summary), ("code", row["code"].strip())):
        if not value:
            raise MoseError(f"{where}: {name}: empty, expected text")
    return Pair(nl=summary, code_a=row["code"], lang_a=row["language"], repository=row["repo"], path=row["path"], split=split)
