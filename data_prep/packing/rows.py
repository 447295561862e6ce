"""What packing takes and gives, whatever its mode: pieces by number, rows of piece numbers, and counts of rows.

Letters: P pieces, R rows, S snippets (pieces in their places in rows).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.packing.config import PackingConfig
from mose.array_types import INT64_ARRAY

# How hard the label is pulled back to its share: a row too many lowers the chance of the next by this much.
_PULL = 1 / 16


@dataclass(frozen=True)
class PieceTable:
    """The pieces of a pool, in file order: all of them non-empty, those of a file next to each other."""

    lengths_P: INT64_ARRAY
    """Tokens of each piece."""
    file_ids_P: INT64_ARRAY
    """Which file each piece is cut from."""
    repository_ids_P: INT64_ARRAY
    """Which repository it belongs to, 0, 1, ..."""


@dataclass(frozen=True)
class Packing:
    """The rows of a pool; `dropped_pieces` are in none of them."""

    pieces_S: INT64_ARRAY
    """The pieces of all rows, row after row."""
    snippets_R: INT64_ARRAY
    """How many pieces stand in each row, 1 or more."""
    mixed_R: INT64_ARRAY
    """1 where pieces of two repositories stand in the row."""
    cut_tokens_R: INT64_ARRAY
    """Tokens that the last piece of the row loses at its end (faithful)."""
    dropped_pieces: INT64_ARRAY
    trailing_separators: int = 0
    """Rows that the paper's loop would leave with a `<sep>` before `<cls>`; it is cut (faithful)."""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.snippets_R)

    def first_snippets(self) -> INT64_ARRAY:
        """Where each row begins in `pieces_S`, [R]."""
        return first_of_each(self.snippets_R)

    def num_tokens(self, table: PieceTable) -> INT64_ARRAY:
        """Filled slots of each row, `<sep>` and `<cls>` included, [R]."""
        if not self.rows:
            return np.zeros(0, dtype=np.int64)
        slots_S = table.lengths_P[self.pieces_S] + 1
        num_tokens: INT64_ARRAY = np.add.reduceat(slots_S, self.first_snippets()) + 1 - self.cut_tokens_R
        return num_tokens


class RowList:
    """Rows as a packing mode finds them, one after another."""

    def __init__(self) -> None:
        self._pieces: list[int] = []
        self._snippets: list[int] = []
        self._mixed: list[int] = []
        self._cut_tokens: list[int] = []

    def add(self, pieces: Sequence[int], mixed: bool, cut_tokens: int = 0) -> None:
        """Append one row."""
        self._pieces.extend(pieces)
        self._snippets.append(len(pieces))
        self._mixed.append(int(mixed))
        self._cut_tokens.append(cut_tokens)

    def packing(self, dropped_pieces: Sequence[int] = (), trailing_separators: int = 0) -> Packing:
        """All of them."""
        columns = (self._pieces, self._snippets, self._mixed, self._cut_tokens, dropped_pieces)
        pieces, snippets, mixed, cut_tokens, dropped = (np.array(column, dtype=np.int64) for column in columns)
        return Packing(pieces, snippets, mixed, cut_tokens, dropped, trailing_separators)


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

    def add(self, mixed: bool) -> None:
        """Count a row as it came out."""
        self._rows += 1
        self._mixed += mixed


@dataclass(frozen=True)
class Packer:
    """What a packing mode provides: a module of this folder defines one as `PACKER`."""

    pack: Callable[[PieceTable, np.random.Generator, PackingConfig, LabelBalance], Packing]
    """Build the rows of a pool; the balance carries the labels of earlier pools and is updated."""
    piece_limits: Callable[[INT64_ARRAY, PackingConfig], INT64_ARRAY]
    """From the tokens of each file [F], how many tokens a piece of it may have [F]."""


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
        cut_tokens = int(packing.cut_tokens_R.sum())
        self.rows += packing.rows
        self.mixed_rows += int(packing.mixed_R.sum())
        self.single_snippet_rows += int(np.count_nonzero(packing.snippets_R == 1))
        self.single_file_rows += _single_file_rows(packing, table)
        self.snippets += len(packing.pieces_S)
        self.tokens += int(packing.num_tokens(table).sum())
        self.text_tokens += int(table.lengths_P.sum())
        self.dropped_tokens += int(table.lengths_P[packing.dropped_pieces].sum()) + cut_tokens
        self.cut_tokens += cut_tokens
        self.trailing_separators += packing.trailing_separators


def _single_file_rows(packing: Packing, table: PieceTable) -> int:
    if not packing.rows:
        return 0
    files_S, firsts_R = table.file_ids_P[packing.pieces_S], packing.first_snippets()
    return int(np.count_nonzero(np.minimum.reduceat(files_S, firsts_R) == np.maximum.reduceat(files_S, firsts_R)))


def first_of_each(counts_R: INT64_ARRAY) -> INT64_ARRAY:
    """Where each of several runs of these lengths begins when they stand one after another, [R]."""
    return np.cumsum(counts_R) - counts_R
