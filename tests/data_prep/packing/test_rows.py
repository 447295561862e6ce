"""Covers the counts of rows: sums over several calls of a packer, and calls that give no row."""

import numpy as np

from data_prep.packing.config import PackingConfig
from data_prep.packing.next_sentence import PACKER
from data_prep.packing.rows import ChunkTable, RowCounts, RowList
from mose.dataset.packing_modes import PackingMode

# Four chunks: two of file 0, one each of files 1 and 2; two repositories.
TABLE = ChunkTable(np.array([5, 3, 4, 2]), np.array([0, 0, 1, 2]), np.array([0, 0, 0, 1]))


def test_counts_of_several_packings_add_up() -> None:
    first, second = RowList(), RowList()
    first.add([0, 1], mixed=False)
    first.add([2, 3], mixed=True, cut_tokens=1)
    second.add([0], mixed=False)
    counts = RowCounts()
    counts.add(first.packing(trailing_separators=2), TABLE)
    counts.add(second.packing(dropped_chunks=[1, 3], trailing_separators=3), TABLE)
    # Each chunk has a `<sep>` and each row a `<cls>`: 5 + 3 + 3, 4 + 2 + 3 - 1 and 5 + 2 slots.
    assert counts == RowCounts(
        rows=3,
        mixed_rows=1,
        single_snippet_rows=1,
        single_file_rows=2,
        snippets=5,
        tokens=11 + 8 + 7,
        text_tokens=28,
        dropped_tokens=1 + 5,
        cut_tokens=1,
        trailing_separators=5,
    )


def test_a_packing_without_rows_counts_its_text_only() -> None:
    counts, empty = RowCounts(), RowList().packing(dropped_chunks=[0, 1, 2, 3])
    counts.add(empty, TABLE)
    assert counts == RowCounts(text_tokens=14, dropped_tokens=14)
    assert empty.num_tokens(TABLE).tolist() == []


def test_next_sentence_splits_every_file_that_can_be() -> None:
    limits = PACKER.chunk_limits(
        np.array([1, 2, 3, 9, 500]), PackingConfig(mode=PackingMode.nsp, sequence_length=64, piece_tokens=30)
    )
    assert limits.tolist() == [1, 1, 2, 5, 30]
