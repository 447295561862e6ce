"""Reads the pairs of a split from one or more files: our parquet, or CodeSearchNet's JSON lines as they are on disk."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mose.dataset.pairs import Pair, read_pairs
from mose.errors import MoseError
from mose.files.json_file import parse_json

JSON_LINES = (".jsonl", ".jsonl.gz")
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
    opened = gzip.open if path.name.endswith(".gz") else open
    pairs = []
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = _row(line, f"{path}: line {number}")
                if _SPLITS.get(row["partition"], row["partition"]) == split:
                    pairs.append(_pair(row, split, f"{path}: line {number}"))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise MoseError(f"{path}: not a readable file of JSON lines: {error}") from None
    if not pairs:
        raise MoseError(f"{path}: partition: no line of split {split!r}, expected at least one")
    return pairs


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = parse_json(line.encode("utf-8"), half_pairs=True)
    except ValueError as error:
        raise MoseError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise MoseError(f"{where}: not a JSON object, expected one with {', '.join(_FIELDS)}")
    for name in _FIELDS:
        if not isinstance(row.get(name), str):
            raise MoseError(f"{where}: {name}: {row.get(name)!r}, expected text")
    return row


def _pair(row: dict[str, Any], split: str, where: str) -> Pair:
    summary = " ".join(row["docstring"].strip().split("\n\n")[0].split())
    for name, value in (("docstring", summary), ("code", row["code"].strip())):
        if not value:
            raise MoseError(f"{where}: {name}: empty, expected text")
    return Pair(nl=summary, code_a=row["code"], lang_a=row["language"], repository=row["repo"], path=row["path"], split=split)
