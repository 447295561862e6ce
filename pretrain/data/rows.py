"""The interface between the loader and the storage of rows, wherever they lie."""

from typing import Protocol

from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS
from mose.dataset.shard_format import RowLabels


class Rows(Protocol):
    """Rows by number: of one data set, of several, or generated ones. Not thread-safe."""

    def __len__(self) -> int: ...

    @property
    def sequence_length(self) -> int:
        """Slots T of a row."""

    def reach(self, start: int, count: int) -> None:
        """Announce that positions start..start+count-1 of the run are read next, so that storage can read ahead from there."""

    def labels(self, rows_R: INT64_ARRAY) -> RowLabels:
        """Labels [R] of these rows, without touching their tokens."""

    def tokens(self, rows_R: INT64_ARRAY) -> TOKENS:
        """Tokens [R, T] of these rows, in the requested order; a copy that the caller may change."""

    def close(self) -> None:
        """Release memory maps, files and threads."""
