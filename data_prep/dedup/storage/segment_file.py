"""Files of pairs of 64-bit numbers in sorted segments: an external sort by the first number, merged by the reader.

A writer that cannot hold all pairs in memory writes segments, each sorted. A reader asks for a range of first numbers and gets
that slice of every segment, found by binary search in the mapped file.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from mose.errors import MoseError
from mose.seeding import UINT64_ARRAY

_ITEM_BYTES = 8
_END = 1 << 64


class SegmentWriter:
    """Writes pairs to an open file."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.lengths: list[int] = []
        """Pairs of each segment: what a reader needs to know."""

    def add(self, first: UINT64_ARRAY, second: UINT64_ARRAY) -> None:
        """Write one segment, in any order; nothing if it is empty."""
        if not len(first):
            return
        order = np.lexsort((second, first))
        self._file.write(np.ascontiguousarray(first[order], "<u8").data)
        self._file.write(np.ascontiguousarray(second[order], "<u8").data)
        self.lengths.append(len(first))


class SegmentFile:
    """A finished file, mapped into memory."""

    def __init__(self, path: Path, lengths: Sequence[int]):
        """Raises MoseError if the file does not have the size of these segments."""
        size = path.stat().st_size if path.is_file() else -1
        if size != 2 * _ITEM_BYTES * sum(lengths):
            raise MoseError(
                f"{path}: missing, or of another size than its marker says; remove the marker, and its task runs again"
            )
        self._segments: list[tuple[UINT64_ARRAY, UINT64_ARRAY]] = []
        if not size:
            return
        numbers = np.memmap(path, "<u8", mode="r")
        start = 0
        for length in lengths:
            self._segments.append((numbers[start : start + length], numbers[start + length : start + 2 * length]))
            start += 2 * length

    def count(self, low: int, high: int) -> int:
        """Number of pairs whose first number is in [low, high)."""
        return sum(stop - start for start, stop in self._bounds(low, high))

    def read(self, low: int, high: int) -> tuple[UINT64_ARRAY, UINT64_ARRAY]:
        """The pairs whose first number is in [low, high), segment by segment."""
        parts = [
            (a[start:stop], b[start:stop]) for (a, b), (start, stop) in zip(self._segments, self._bounds(low, high), strict=True)
        ]
        empty = np.zeros(0, np.uint64)
        return np.concatenate([empty, *(a for a, _ in parts)]), np.concatenate([empty, *(b for _, b in parts)])

    def _bounds(self, low: int, high: int) -> list[tuple[int, int]]:
        return [
            (
                int(np.searchsorted(first, np.uint64(low))),
                len(first) if high >= _END else int(np.searchsorted(first, np.uint64(high))),
            )
            for first, _ in self._segments
        ]


def read_sorted(files: Sequence[SegmentFile], low: int, high: int) -> tuple[UINT64_ARRAY, UINT64_ARRAY]:
    """The pairs of all files whose first number is in [low, high), sorted."""
    parts = [file.read(low, high) for file in files]
    first, second = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    order = np.lexsort((second, first))
    return first[order], second[order]


def ranges(files: Sequence[SegmentFile], low: int, high: int, max_pairs: int) -> list[tuple[int, int]]:
    """Equal parts of [low, high), so many that one holds about `max_pairs` pairs if the first numbers are evenly spread."""
    total = sum(file.count(low, high) for file in files)
    number = min(-(-total // max_pairs), high - low) if total else 0
    bounds = [low + part * (high - low) // number for part in range(number)] + [high]
    return list(itertools.pairwise(bounds))
