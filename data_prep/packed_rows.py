"""What packing takes and gives, whatever its mode: pieces by number, rows of piece numbers, and counts of rows.

Letters: P pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mose.packed_sequence import packed_length

# How hard the label is pulled back to its share: a row too many lowers the chance of the next by this much.
_PULL = 1 / 16


@dataclass(frozen=True)
class PieceTable:
    """The pieces of a pool, in file order: all of them non-empty, those of a file next to each other."""

    lengths: Sequence[int]
    """Tokens of each piece, [P]."""
    file_ids: Sequence[int]
    """Which file each piece is cut from, [P]."""
    repository_ids: Sequence[int]
    """Which repository it belongs to, 0, 1, ...; [P]."""


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One row: the pieces in it, in order, and its label, which says what the row holds."""

    pieces: tuple[int, ...]
    mixed: int
    """1 where pieces of two repositories stand in the row."""
    cut_tokens: int = 0
    """Tokens that the last piece loses at its end (faithful)."""


@dataclass(frozen=True)
class Packing:
    """The rows of a pool; `dropped_pieces` are in none of them."""

    rows: list[PackedRow]
    dropped_pieces: list[int] = field(default_factory=list)
    trailing_separators: int = 0
    """Rows that the paper's loop would leave with a `<sep>` before `<cls>`; it is cut (faithful)."""


class LabelBalance:
    """Draws labels so that the realised share of mixed rows stays close to the wanted one, over any number of pools."""

    def __init__(self, mixed_share: float):
        self.mixed_share = mixed_share
        self._rows = 0
        self._mixed = 0

    def draw(self, random: np.random.Generator) -> bool:
        """Whether the next row should be mixed; 50/50, pulled towards the share that earlier rows missed."""
        behind = self.mixed_share * self._rows - self._mixed
        return random.random() < self.mixed_share + (behind * _PULL if 0 < self.mixed_share < 1 else 0)

    def add(self, row: PackedRow) -> None:
        """Count a row as it came out."""
        self._rows += 1
        self._mixed += row.mixed


@dataclass
class RowCounts:
    """Rows of a split by kind, and the tokens that did and did not enter one."""

    rows: int = 0
    mixed_rows: int = 0
    single_snippet_rows: int = 0
    single_file_rows: int = 0
    """Rows that are all of one file, those of one piece included: their label tests continuation, not repository."""
    snippets: int = 0
    tokens: int = 0
    """Filled slots: `<sep>` and `<cls>` included."""
    text_tokens: int = 0
    """Tokens of the files, before packing."""
    dropped_tokens: int = 0
    """Of `text_tokens`, those that are in no row."""
    cut_tokens: int = 0
    """Of the dropped, those cut from the end of a row that would have been one slot too long."""
    trailing_separators: int = 0

    def add(self, packing: Packing, table: PieceTable) -> None:
        """Count one pool."""
        for row in packing.rows:
            self._add_row(row, table)
        self.dropped_tokens += sum(table.lengths[piece] for piece in packing.dropped_pieces)
        self.text_tokens += sum(table.lengths)
        self.trailing_separators += packing.trailing_separators

    def _add_row(self, row: PackedRow, table: PieceTable) -> None:
        self.rows += 1
        self.mixed_rows += row.mixed
        self.single_snippet_rows += len(row.pieces) == 1
        self.single_file_rows += len({table.file_ids[piece] for piece in row.pieces}) == 1
        self.snippets += len(row.pieces)
        self.tokens += packed_length([table.lengths[piece] for piece in row.pieces]) - row.cut_tokens
        self.cut_tokens += row.cut_tokens
        self.dropped_tokens += row.cut_tokens
