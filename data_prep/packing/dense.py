"""The default packing: every piece used once, rows nearly full, labels balanced over repositories of very different sizes.

Pieces come in seeded random order within their repository; one that does not fit waits for the next row. The "slots" of a
piece are its tokens and its `<sep>`; a row offers all its slots but the one of `<cls>`.

Nothing is done for all repositories at each row: a repository is drawn as the owner of the next unused piece of one random
order of all pieces, so by chance in proportion to what it has, and the largest is found in a heap.
"""

import heapq
import itertools

import numpy as np

from data_prep.packing.config import PackingConfig
from data_prep.packing.rows import LabelBalance, Packer, Packing, PieceTable, RowList
from mose.array_types import INT64_ARRAY

_NONE = -1
_NUMBER_BITS = 32
_NUMBER = (1 << _NUMBER_BITS) - 1
# Mixed rows give each repository about half of their slots, so one that holds more than 3/4 of what is left cannot be used up
# in balance; from this share on it is in every row.
_LARGE_SHARE = 0.5


def pack_dense(table: PieceTable, random: np.random.Generator, config: PackingConfig, balance: LabelBalance) -> Packing:
    """Put every piece into exactly one row; no piece may be longer than `config.piece_tokens`."""
    stock = _Stock(table, random, config)
    rows = RowList()
    while stock.num_repositories:
        wants_mixed = balance.draw(random)
        pair = stock.choose_pair() if wants_mixed else None
        single = _NONE if pair else stock.choose_single()
        if pair is None and single == _NONE:
            pair = stock.choose_pair()
        pieces = stock.mixed_row(*pair) if pair else stock.plain_row(stock.largest() if single == _NONE else single)
        mixed = pair is not None and len(pieces) > 1
        balance.add(mixed)
        rows.add(pieces, mixed)
    return rows.packing()


class _Shelf:
    """The unused pieces of one repository in random order; only the first `look_ahead` are within reach.

    A piece is one number, its slots above its own number, so that sizes are compared without looking them up.
    """

    __slots__ = ("_behind", "within_reach")

    def __init__(self, pieces: list[int], look_ahead: int):
        self.within_reach = pieces[:look_ahead]
        self._behind = pieces[look_ahead:][::-1]

    def take(self, room: int) -> int:
        """Remove and return the first piece that fits into `room`; -1 if none does."""
        pieces = self.within_reach
        limit = (room + 1) << _NUMBER_BITS
        if pieces and pieces[0] < limit:
            return self._remove(0)
        # Most rows end here: min() compares without a step of Python for each piece.
        if not pieces or min(pieces) >= limit:
            return _NONE
        return self._remove(next(place for place, piece in enumerate(pieces) if piece < limit))

    def take_of_other_file(self, room: int, file_ids: list[int], avoided_file: int) -> int:
        """The same, but rather a piece of another file than `avoided_file`."""
        limit = (room + 1) << _NUMBER_BITS
        for place, piece in enumerate(self.within_reach):
            if piece < limit and file_ids[piece & _NUMBER] != avoided_file:
                return self._remove(place)
        return self.take(room)

    def take_largest(self, room: int) -> int:
        """Remove and return the largest piece that fits into `room`; -1 if none does."""
        limit = (room + 1) << _NUMBER_BITS
        largest = max((piece for piece in self.within_reach if piece < limit), default=_NONE)
        return largest if largest == _NONE else self._remove(self.within_reach.index(largest))

    def _remove(self, place: int) -> int:
        piece = self.within_reach.pop(place)
        if self._behind:
            self.within_reach.append(self._behind.pop())
        return piece


class _Stock:
    """What is left of a pool while rows are taken from it."""

    def __init__(self, table: PieceTable, random: np.random.Generator, config: PackingConfig):
        self._random = random
        self._capacity = config.sequence_length - 1
        # Less than this fills no row of its own: it goes beside a repository that has more.
        self._small = self._capacity // 2
        self._file_ids: list[int] = table.file_ids_P.tolist()
        self._owners: list[int] = table.repository_ids_P.tolist()
        self._order: list[int] = random.permutation(len(self._owners)).tolist()
        self._is_used = bytearray(len(self._owners))
        self._fill_shelves(table, config.look_ahead)
        self._full_place = self._ample_place = 0
        self._others: dict[int, list[int]] = {}

    def _fill_shelves(self, table: PieceTable, look_ahead: int) -> None:
        slots_P: list[int] = (table.lengths_P + 1).tolist()
        number = int(table.repository_ids_P.max(initial=-1)) + 1
        pieces_of: list[list[int]] = [[] for _ in range(number)]
        self._left = [0] * number
        for piece in self._order:
            pieces_of[self._owners[piece]].append(slots_P[piece] << _NUMBER_BITS | piece)
            self._left[self._owners[piece]] += slots_P[piece]
        self._shelves = [_Shelf(pieces, look_ahead) for pieces in pieces_of]
        self._total = sum(self._left)
        self.num_repositories = sum(left > 0 for left in self._left)
        self._heap = [(-left, repository) for repository, left in enumerate(self._left)]
        heapq.heapify(self._heap)
        self._is_small = [left < self._small for left in self._left]
        self._small_ones = [repository for repository, left in enumerate(self._left) if 0 < left < self._small]

    def largest(self) -> int:
        """The repository with the most slots left."""
        heap, left = self._heap, self._left
        while -heap[0][0] != left[heap[0][1]]:
            heapq.heapreplace(heap, (-left[heap[0][1]], heap[0][1]))
        return heap[0][1]

    def choose_single(self) -> int:
        """A repository for an unmixed row, by chance; -1 if none has two pieces."""
        largest = self.largest()
        if self._left[largest] >= self._capacity and not self._is_large(largest):
            self._full_place = self._next_place(self._full_place, self._capacity)
            return self._owners[self._order[self._full_place]]
        return largest if len(self._shelves[largest].within_reach) > 1 else _NONE

    def choose_pair(self) -> tuple[int, int] | None:
        """Two repositories for a mixed row, the one that begins it first; None if only one is left.

        What is left of a nearly used up repository fills no row, so it goes beside a repository that has more.
        """
        if self.num_repositories < 2:
            return None
        first = largest = self.largest()
        is_large = self._is_large(largest)
        if self._left[largest] >= self._small and not is_large:
            self._ample_place = self._next_place(self._ample_place, self._small)
            first = self._owners[self._order[self._ample_place]]
        second = self._draw_small(first)
        if second != _NONE:
            return first, second
        second = self._next_of_others(first) if is_large else self._next_after(self._ample_place, first)
        return (first, second) if self._random.random() < 0.5 else (second, first)

    def plain_row(self, repository: int) -> list[int]:
        """An unmixed row: pieces of one repository until nothing within reach fits; of two files or more where that can be."""
        shelf, file_ids = self._shelves[repository], self._file_ids
        room = self._capacity
        piece = shelf.take(room)
        first_file = only_file = file_ids[piece & _NUMBER]
        pieces = []
        while piece != _NONE:
            pieces.append(piece & _NUMBER)
            room -= piece >> _NUMBER_BITS
            only_file = only_file if file_ids[pieces[-1]] == first_file else _NONE
            piece = shelf.take(room) if only_file == _NONE else shelf.take_of_other_file(room, file_ids, only_file)
        self._account(repository, self._capacity - room, pieces)
        return pieces

    def mixed_row(self, first: int, second: int) -> list[int]:
        """A mixed row: pieces of two repositories in turn until nothing within reach of the one whose turn it is fits.

        Once the other has nothing left, the piece is the last one, so it is the largest that fits.
        """
        turn, other = self._shelves[first], self._shelves[second]
        rooms = [self._capacity]
        pieces = []
        while (piece := turn.take(rooms[-1]) if other.within_reach else turn.take_largest(rooms[-1])) != _NONE:
            pieces.append(piece & _NUMBER)
            rooms.append(rooms[-1] - (piece >> _NUMBER_BITS))
            turn, other = other, turn
        used = [before - after for before, after in itertools.pairwise(rooms)]
        self._account(first, sum(used[::2]), pieces[::2])
        self._account(second, sum(used[1::2]), pieces[1::2])
        return pieces

    def _account(self, repository: int, slots: int, pieces: list[int]) -> None:
        """Note what a row took of a repository, and whether it is used up now or has become small."""
        for piece in pieces:
            self._is_used[piece] = 1
        left = self._left[repository] = self._left[repository] - slots
        self._total -= slots
        if left == 0:
            self.num_repositories -= 1
        elif left < self._small and not self._is_small[repository]:
            self._is_small[repository] = True
            self._small_ones.append(repository)

    def _is_large(self, repository: int) -> bool:
        return self._left[repository] > _LARGE_SHARE * self._total

    def _draw_small(self, first: int) -> int:
        """A small repository other than `first`, by chance; -1 if there is none. Used up ones leave the list here."""
        small = self._small_ones
        skipped = False
        chosen = _NONE
        while small and chosen == _NONE:
            place = int(self._random.random() * len(small))
            repository = small[place]
            small[place] = small[-1]
            small.pop()
            if repository == first:
                skipped = True
            elif self._left[repository]:
                chosen = repository
        small += [chosen] if chosen != _NONE else []
        small += [first] if skipped else []
        return chosen

    def _next_place(self, place: int, least: int) -> int:
        """The next place in the order whose piece is unused and whose repository has `least` slots or more.

        There must be one. What is passed over stays so: pieces are only ever used, repositories only ever shrink.
        """
        order, is_used, owners, left = self._order, self._is_used, self._owners, self._left
        while is_used[order[place]] or left[owners[order[place]]] < least:
            place += 1
        return place

    def _next_after(self, place: int, first: int) -> int:
        """The owner of the next unused piece that is not of `first`."""
        order, is_used, owners = self._order, self._is_used, self._owners
        while is_used[order[place]] or owners[order[place]] == first:
            place += 1
        return owners[order[place]]

    def _next_of_others(self, large: int) -> int:
        """The same where most of what is left is of `large`: its pieces are taken out of the order once."""
        others = self._others.get(large)
        if others is None:
            others = [piece for piece in reversed(self._order) if not self._is_used[piece] and self._owners[piece] != large]
            self._others[large] = others
        while self._is_used[others[-1]]:
            others.pop()
        return self._owners[others[-1]]


def _piece_limits(num_tokens_F: INT64_ARRAY, config: PackingConfig) -> INT64_ARRAY:
    return np.full_like(num_tokens_F, config.piece_tokens)


PACKER = Packer(pack_dense, _piece_limits)
