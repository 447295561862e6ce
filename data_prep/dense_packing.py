"""The default packing: every piece used once, rows nearly full, labels balanced over repositories of very different sizes.

Pieces come in seeded random order within their repository; one that does not fit waits for the next row. The "slots" of a
piece are its tokens and its `<sep>`; a row offers all its slots but the one of `<cls>`.

Letters: R repositories.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_prep.config import PackingConfig
from data_prep.packed_rows import LabelBalance, PackedRow, Packing, PieceTable

_NO_FILE = -1
# Mixed rows give each repository about half of their slots, so one that holds more than 3/4 of what is left cannot be used up
# in balance; from this share on it is in every row.
_LARGE_SHARE = 0.5


def pack_dense(table: PieceTable, random: np.random.Generator, config: PackingConfig, balance: LabelBalance) -> Packing:
    """Put every piece into exactly one row; no piece may be longer than `config.piece_tokens`."""
    stock = _Stock(table, random, config)
    rows = []
    while stock.num_repositories():
        wants_mixed = balance.draw(random)
        pair = stock.choose_pair() if wants_mixed else None
        single = None if pair else stock.choose_single()
        if single is None and pair is None:
            pair = stock.choose_pair()
        row = stock.mixed_row(*pair) if pair else stock.plain_row(stock.largest() if single is None else single)
        balance.add(row)
        rows.append(row)
    return Packing(rows)


class _Shelf:
    """The unused pieces of one repository in random order; only the first `look_ahead` are within reach."""

    def __init__(self, pieces: list[int], look_ahead: int):
        self.within_reach = pieces[:look_ahead]
        self._behind = pieces[look_ahead:][::-1]

    def take(self, room: int, slots: Sequence[int], file_ids: Sequence[int], avoided_file: int) -> int | None:
        """Remove and return the first piece that fits into `room`, rather one of another file than `avoided_file`."""
        place = second_choice = -1
        for place, piece in enumerate(self.within_reach):
            if slots[piece] <= room:
                if file_ids[piece] != avoided_file:
                    break
                if second_choice < 0:
                    second_choice = place
        else:
            place = second_choice
        if place < 0:
            return None
        taken = self.within_reach.pop(place)
        if self._behind:
            self.within_reach.append(self._behind.pop())
        return taken


class _Stock:
    """What is left of a pool while rows are taken from it."""

    def __init__(self, table: PieceTable, random: np.random.Generator, config: PackingConfig):
        self._slots = [length + 1 for length in table.lengths]
        self._file_ids = table.file_ids
        self._capacity = config.sequence_length - 1
        self._random = random
        pieces_of: list[list[int]] = [[] for _ in range(max(table.repository_ids, default=-1) + 1)]
        for piece in random.permutation(len(self._slots)).tolist():
            pieces_of[table.repository_ids[piece]].append(piece)
        self._shelves = [_Shelf(pieces, config.look_ahead) for pieces in pieces_of]
        self._left_R: NDArray[np.int64] = np.array([sum(self._slots[i] for i in pieces) for pieces in pieces_of], dtype=np.int64)
        self._left = int(self._left_R.sum())
        self._num_repositories = int(np.count_nonzero(self._left_R))

    def num_repositories(self) -> int:
        """Repositories with at least one unused piece."""
        return self._num_repositories

    def largest(self) -> int:
        """The repository with the most slots left."""
        return int(self._left_R.argmax())

    def choose_single(self) -> int | None:
        """A repository for an unmixed row, by chance in proportion to what it has left; None if none has two pieces."""
        largest = self.largest()
        fills_a_row = self._left_R >= self._capacity
        if fills_a_row.any() and not self._is_large(largest):
            return self._draw(fills_a_row)
        return largest if len(self._shelves[largest].within_reach) > 1 else None

    def choose_pair(self) -> tuple[int, int] | None:
        """Two repositories for a mixed row, the one that begins it first; None if only one is left.

        What is left of a nearly used up repository fills no row, so it goes beside a repository that has more.
        """
        if self.num_repositories() < 2:
            return None
        left = self._left_R
        small = (left > 0) & (left < self._capacity // 2)
        largest = self.largest()
        not_small = (left > 0) & ~small
        first = self._draw(not_small) if not_small.any() and not self._is_large(largest) else largest
        others = (left > 0) & (np.arange(len(left)) != first)
        small_others = small & others
        if small_others.any():
            return first, self._draw(small_others)
        second = self._draw(others)
        return (first, second) if self._random.random() < 0.5 else (second, first)

    def plain_row(self, repository: int) -> PackedRow:
        """An unmixed row: pieces of one repository until nothing within reach fits."""
        pieces: list[int] = []
        room = self._capacity
        avoided_file = _NO_FILE
        while (piece := self._take(repository, room, avoided_file)) is not None:
            room -= self._slots[piece]
            file = self._file_ids[piece]
            avoided_file = file if not pieces or file == avoided_file else _NO_FILE
            pieces.append(piece)
        return PackedRow(tuple(pieces), 0)

    def mixed_row(self, first: int, second: int) -> PackedRow:
        """A mixed row: pieces of two repositories in turn until nothing within reach of the one whose turn it is fits."""
        pieces: list[int] = []
        room = self._capacity
        while (piece := self._take((first, second)[len(pieces) % 2], room, _NO_FILE)) is not None:
            room -= self._slots[piece]
            pieces.append(piece)
        return PackedRow(tuple(pieces), int(len(pieces) > 1))

    def _take(self, repository: int, room: int, avoided_file: int) -> int | None:
        piece = self._shelves[repository].take(room, self._slots, self._file_ids, avoided_file)
        if piece is not None:
            self._left_R[repository] -= self._slots[piece]
            self._left -= self._slots[piece]
            self._num_repositories -= not self._shelves[repository].within_reach
        return piece

    def _is_large(self, repository: int) -> bool:
        return bool(self._left_R[repository] > _LARGE_SHARE * self._left)

    def _draw(self, allowed_R: NDArray[np.bool_]) -> int:
        """One of the allowed repositories, of which there is one at least, by chance in proportion to what it has left."""
        up_to_R = (self._left_R * allowed_R).cumsum()
        return int(up_to_R.searchsorted(int(self._random.random() * up_to_R[-1]), side="right"))
