"""What a loader needs of the rows of a data set, wherever they lie."""

from typing import Protocol

from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS
from mose.dataset.shard_format import RowLabels


class Rows(Protocol):
    """Rows by number: those of a data set, of several, or made-up ones. For one thread at a time."""

    def __len__(self) -> int: ...

    @property
    def sequence_length(self) -> int:
        """Slots T of a row."""

    def reach(self, start: int, count: int) -> None:
        """Say that positions start..start+count-1 of the run are read next: whoever fetches ahead goes on from there."""

    def labels(self, rows_R: INT64_ARRAY) -> RowLabels:
        """Labels [R] of these rows, without touching their tokens."""

    def tokens(self, rows_R: INT64_ARRAY) -> TOKENS:
        """Tokens [R, T] of these rows, in the order asked for; the caller's own copy."""

    def close(self) -> None:
        """Give back maps, files and threads."""
