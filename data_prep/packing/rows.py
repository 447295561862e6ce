"""Input and output of every packing mode: a table of chunks, rows of chunk numbers, and counts of rows.

Letters: C chunks, R rows, S snippets (chunks in their places in rows).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.packing.config import PackingConfig
from mose.array_types import INT64_ARRAY

# One mixed row too many lowers the probability of the next one by this much. It is small, so that labels stay nearly independent
# of their neighbours; it still corrects the drift of the dense packer, which cannot always build the row that was drawn.
_PULL = 1 / 16


@dataclass(frozen=True)
class ChunkTable:
    """The chunks to pack, none empty; the chunks of a file are consecutive and in their order."""

    lengths_C: INT64_ARRAY
    """Tokens of each chunk."""
    file_ids_C: INT64_ARRAY
    """The file of each chunk."""
    repository_ids_C: INT64_ARRAY
    """The repository of each chunk: 0, 1, ..."""


@dataclass(frozen=True)
class Packing:
    """Rows of chunks; `dropped_chunks` are in no row."""

    chunks_S: INT64_ARRAY
    """The chunks of all rows, row after row."""
    snippets_R: INT64_ARRAY
    """Number of chunks in each row, 1 or more."""
    mixed_R: INT64_ARRAY
    """1 where a row has chunks of two repositories."""
    cut_tokens_R: INT64_ARRAY
    """Tokens cut from the end of a row's last chunk (faithful)."""
    dropped_chunks: INT64_ARRAY
    trailing_separators: int = 0
    """Rows that the paper's loop ends with `<sep> <cls>`; that `<sep>` is cut (faithful)."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.snippets_R)

    def first_snippets(self) -> INT64_ARRAY:
        """Index of each row's first chunk in `chunks_S`, [R]."""
        return first_of_each(self.snippets_R)

    def num_tokens(self, table: ChunkTable) -> INT64_ARRAY:
        """Filled slots of each row, `<sep>` and `<cls>` included, [R]."""
        if not self.rows:
            return np.zeros(0, dtype=np.int64)
        slots_S = table.lengths_C[self.chunks_S] + 1
        num_tokens: INT64_ARRAY = np.add.reduceat(slots_S, self.first_snippets()) + 1 - self.cut_tokens_R
        return num_tokens


class RowList:
    """Collects the rows of a packing mode."""

    def __init__(self) -> None:
        self._chunks: list[int] = []
        self._snippets: list[int] = []
        self._mixed: list[int] = []
        self._cut_tokens: list[int] = []

    def add(self, chunks: Sequence[int], mixed: bool, cut_tokens: int = 0) -> None:
        """Append one row."""
        self._chunks.extend(chunks)
        self._snippets.append(len(chunks))
        self._mixed.append(int(mixed))
        self._cut_tokens.append(cut_tokens)

    def packing(self, dropped_chunks: Sequence[int] = (), trailing_separators: int = 0) -> Packing:
        """All rows as arrays."""
        columns = (self._chunks, self._snippets, self._mixed, self._cut_tokens, dropped_chunks)
        chunks, snippets, mixed, cut_tokens, dropped = (np.array(column, dtype=np.int64) for column in columns)
        return Packing(chunks, snippets, mixed, cut_tokens, dropped, trailing_separators)


class LabelBalance:
    """Draws labels such that the share of mixed rows stays close to the wanted one over all samples of a split."""

    def __init__(self, mixed_share: float):
        self.mixed_share = mixed_share
        self._rows = 0
        self._mixed = 0

    def draw(self, random: np.random.Generator) -> bool:
        """Whether the next row should be mixed: `mixed_share`, corrected by the deviation of the rows so far."""
        behind = self.mixed_share * self._rows - self._mixed
        return random.random() < self.mixed_share + (behind * _PULL if 0 < self.mixed_share < 1 else 0)

    def add(self, mixed: bool) -> None:
        """Count a row with the label that it got."""
        self._rows += 1
        self._mixed += mixed


@dataclass(frozen=True)
class Packer:
    """What a packing mode provides: a module of this folder defines one as `PACKER`."""

    pack: Callable[[ChunkTable, np.random.Generator, PackingConfig, LabelBalance], Packing]
    """Build the rows of a table of chunks; the balance counts the labels of earlier calls and is updated."""
    chunk_limits: Callable[[INT64_ARRAY, PackingConfig], INT64_ARRAY]
    """From the tokens of each file [F], how many tokens a chunk of it may have [F]."""


@dataclass
class RowCounts:
    """Rows of a split by kind, and the tokens that did and did not enter one."""

    rows: int = 0
    mixed_rows: int = 0
    single_snippet_rows: int = 0
    single_file_rows: int = 0
    """Rows of a single file, including those of one chunk: their label teaches continuation, not repository."""
    snippets: int = 0
    tokens: int = 0
    """Filled slots: `<sep>` and `<cls>` included."""
    text_tokens: int = 0
    """Tokens of the files before packing."""
    dropped_tokens: int = 0
    """Those of `text_tokens` that are in no row."""
    cut_tokens: int = 0
    """Those of `dropped_tokens` that were cut from the end of a row one slot too long."""
    trailing_separators: int = 0

    def add(self, packing: Packing, table: ChunkTable) -> None:
        """Add the rows of one call of `pack`."""
        cut_tokens = int(packing.cut_tokens_R.sum())
        self.rows += packing.rows
        self.mixed_rows += int(packing.mixed_R.sum())
        self.single_snippet_rows += int(np.count_nonzero(packing.snippets_R == 1))
        self.single_file_rows += _single_file_rows(packing, table)
        self.snippets += len(packing.chunks_S)
        self.tokens += int(packing.num_tokens(table).sum())
        self.text_tokens += int(table.lengths_C.sum())
        self.dropped_tokens += int(table.lengths_C[packing.dropped_chunks].sum()) + cut_tokens
        self.cut_tokens += cut_tokens
        self.trailing_separators += packing.trailing_separators


def _single_file_rows(packing: Packing, table: ChunkTable) -> int:
    if not packing.rows:
        return 0
    files_S, firsts_R = table.file_ids_C[packing.chunks_S], packing.first_snippets()
    return int(np.count_nonzero(np.minimum.reduceat(files_S, firsts_R) == np.maximum.reduceat(files_S, firsts_R)))


def first_of_each(counts_R: INT64_ARRAY) -> INT64_ARRAY:
    """Start offsets [R] of consecutive runs with these lengths."""
    return np.cumsum(counts_R) - counts_R
