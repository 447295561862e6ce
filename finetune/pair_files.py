"""Reads the pairs of a split from one or more files."""

from collections.abc import Sequence
from pathlib import Path

from mose.dataset.pairs import Pair, read_pairs


def read_pair_files(paths: Sequence[Path], split: str) -> list[Pair]:
    """All pairs of `split`, file after file.

    Raises:
        MoseError: a file is missing, lacks a column, or has no pair of this split.
    """
    return [pair for path in paths for pair in read_pairs(path, split)]
