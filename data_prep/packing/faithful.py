"""The paper's packing, Figure 2 as printed: files stay whole, and one that does not fit ends the row and is lost.

The printed loop appends `<sep>` before it knows whether the next snippet fits, so a row may end `<sep> <cls>`; and it compares
the length without `<cls>`, so a row may have one token too many. Both are cut off here, and counted, because a row has a fixed
length. The rest is kept as printed, losses included: this mode exists to measure what the paper's data lacked.
"""

import numpy as np

from data_prep.packing.config import PackingConfig
from data_prep.packing.rows import ChunkTable, LabelBalance, Packer, Packing, RowList
from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import packed_length


def pack_faithful(table: ChunkTable, random: np.random.Generator, config: PackingConfig, balance: LabelBalance) -> Packing:
    """Call the paper's loop until no snippet is left.

    The figure does not say how repositories are chosen. Here each is chosen in proportion to its remaining snippets."""
    loop = _Loop(table, config.sequence_length)
    # The owners of the snippets in random order begin the rows, so a repository begins rows in proportion to its snippets.
    order = random.permutation(len(loop.lengths)).tolist()
    for snippet in order:
        loop.snippets_of.setdefault(loop.repository_ids[snippet], []).append(snippet)
    for snippet in order:
        repository = loop.repository_ids[snippet]
        if loop.snippets_of[repository]:
            is_negative = balance.draw(random)
            loop.build_concatenation(repository, _other(loop.snippets_of, repository, random) if is_negative else None, balance)
    return loop.rows.packing(loop.dropped, loop.trailing_separators)


def _other(snippets_of: dict[int, list[int]], repository: int, random: np.random.Generator) -> int | None:
    others = [name for name, snippets in snippets_of.items() if snippets and name != repository]
    return others[random.integers(len(others))] if others else None


class _Loop:
    """The figure's `build_concatenation`, and a list of what it loses."""

    def __init__(self, table: ChunkTable, max_length: int):
        self.snippets_of: dict[int, list[int]] = {}
        self.lengths: list[int] = table.lengths_C.tolist()
        self.repository_ids: list[int] = table.repository_ids_C.tolist()
        self.rows = RowList()
        self.dropped: list[int] = []
        self.trailing_separators = 0
        self._max_length = max_length

    def build_concatenation(self, repository_a: int, repository_b: int | None, balance: LabelBalance) -> None:
        """Build one row; no row if its first snippet is longer than a row."""
        row: list[int] = []
        fits = False
        while self.snippets_of[repository_a]:
            fits = self._append(row, repository_a)
            if fits and repository_b is not None and self.snippets_of[repository_b]:
                fits = self._append(row, repository_b)
            if not fits:
                break
        self.trailing_separators += bool(row) and not fits
        if row:
            self._finish(row, balance)

    def _append(self, row: list[int], repository: int) -> bool:
        """Append `<sep>` and the next snippet if they fit; otherwise the snippet is lost."""
        snippet = self.snippets_of[repository].pop()
        # Without `<cls>`, as printed.
        fits = self._length([*row, snippet]) - 1 <= self._max_length
        (row if fits else self.dropped).append(snippet)
        return fits

    def _length(self, row: list[int]) -> int:
        return packed_length([self.lengths[snippet] for snippet in row])

    def _finish(self, row: list[int], balance: LabelBalance) -> None:
        too_long = max(0, self._length(row) - self._max_length)
        # A last snippet of one token would be cut to nothing: drop it, since a row has no empty snippets.
        if too_long and self.lengths[row[-1]] == too_long:
            self.dropped.append(row.pop())
            too_long = 0
        mixed = len({self.repository_ids[snippet] for snippet in row}) > 1
        balance.add(mixed)
        self.rows.add(row, mixed, too_long)


def _chunk_limits(num_tokens_F: INT64_ARRAY, config: PackingConfig) -> INT64_ARRAY:
    # The paper cuts no file.
    return np.maximum(1, num_tokens_F)


PACKER = Packer(pack_faithful, _chunk_limits)
