"""The default packing: uses every chunk once, fills rows nearly completely and balances the labels of very unequal repositories.

Each row is filled first-fit with the chunks of one repository, or of two in turn. Chunks come in seeded random order; one that
does not fit waits for a later row. The "slots" of a chunk are its tokens and its `<sep>`; a row has one slot less than its
length, because `<cls>` takes one.

The work per row must not grow with the number of repositories, of which a sample of the shuffle buffer has many thousands. So a
repository is drawn as the owner of the next unused chunk in one random order of all chunks, which makes its probability
proportional to what it has left, and the largest repository is the top of a heap.
"""

import heapq
import itertools

import numpy as np

from data_prep.packing.config import PackingConfig
from data_prep.packing.rows import ChunkTable, LabelBalance, Packer, Packing, RowList
from mose.array_types import INT64_ARRAY

_NONE = -1
_NUMBER_BITS = 32
_NUMBER = (1 << _NUMBER_BITS) - 1
# A mixed row takes about half of its slots from each of two repositories. With half of the rows mixed, a repository that is in
# every row uses 3/4 of all slots, so one that holds more than that cannot be used up in balance. To prevent this, a repository
# is put into every row from a lower share on.
_LARGE_SHARE = 0.5


def pack_dense(table: ChunkTable, random: np.random.Generator, config: PackingConfig, balance: LabelBalance) -> Packing:
    """Put every chunk into exactly one row; no chunk may have more than `config.piece_tokens` tokens."""
    stock = _Stock(table, random, config)
    rows = RowList()
    while stock.num_repositories:
        wants_mixed = balance.draw(random)
        pair = stock.choose_pair() if wants_mixed else None
        single = _NONE if pair else stock.choose_single()
        if pair is None and single == _NONE:
            pair = stock.choose_pair()
        chunks = stock.mixed_row(*pair) if pair else stock.plain_row(stock.largest() if single == _NONE else single)
        mixed = pair is not None and len(chunks) > 1
        balance.add(mixed)
        rows.add(chunks, mixed)
    return rows.packing()


class _Shelf:
    """The unused chunks of one repository in random order; only the first `look_ahead` are candidates for a row.

    The bound keeps the search per row short and the order random: with all chunks within reach, short ones would fill up the
    first rows, and none would be left for the last. A chunk is stored as one integer, slots in the high bits and number in the
    low bits, so that comparing integers compares sizes.
    """

    __slots__ = ("_behind", "within_reach")

    def __init__(self, chunks: list[int], look_ahead: int):
        self.within_reach = chunks[:look_ahead]
        self._behind = chunks[look_ahead:][::-1]

    def take(self, room: int) -> int:
        """Remove and return the first chunk that fits into `room`; -1 if none does."""
        chunks = self.within_reach
        limit = (room + 1) << _NUMBER_BITS
        if chunks and chunks[0] < limit:
            return self._remove(0)
        # Every row ends with a search that finds nothing. min() does it in C.
        if not chunks or min(chunks) >= limit:
            return _NONE
        return self._remove(next(place for place, chunk in enumerate(chunks) if chunk < limit))

    def take_of_other_file(self, room: int, file_ids: list[int], avoided_file: int) -> int:
        """The same, but prefer a chunk of another file than `avoided_file`."""
        limit = (room + 1) << _NUMBER_BITS
        for place, chunk in enumerate(self.within_reach):
            if chunk < limit and file_ids[chunk & _NUMBER] != avoided_file:
                return self._remove(place)
        return self.take(room)

    def take_largest(self, room: int) -> int:
        """Remove and return the largest chunk that fits into `room`; -1 if none does."""
        limit = (room + 1) << _NUMBER_BITS
        largest = max((chunk for chunk in self.within_reach if chunk < limit), default=_NONE)
        return largest if largest == _NONE else self._remove(self.within_reach.index(largest))

    def _remove(self, place: int) -> int:
        chunk = self.within_reach.pop(place)
        if self._behind:
            self.within_reach.append(self._behind.pop())
        return chunk


class _Stock:
    """The unused chunks, from which rows are taken."""

    def __init__(self, table: ChunkTable, random: np.random.Generator, config: PackingConfig):
        self._random = random
        self._capacity = config.sequence_length - 1
        # A repository with fewer slots cannot fill a row. It is mixed with one that has more, or its rows would stay half empty.
        self._small = self._capacity // 2
        self._file_ids: list[int] = table.file_ids_C.tolist()
        self._owners: list[int] = table.repository_ids_C.tolist()
        self._order: list[int] = random.permutation(len(self._owners)).tolist()
        self._is_used = bytearray(len(self._owners))
        self._fill_shelves(table, config.look_ahead)
        self._full_place = self._ample_place = 0
        self._others: dict[int, list[int]] = {}

    def _fill_shelves(self, table: ChunkTable, look_ahead: int) -> None:
        slots_C: list[int] = (table.lengths_C + 1).tolist()
        number = int(table.repository_ids_C.max(initial=-1)) + 1
        chunks_of: list[list[int]] = [[] for _ in range(number)]
        self._left = [0] * number
        for chunk in self._order:
            chunks_of[self._owners[chunk]].append(slots_C[chunk] << _NUMBER_BITS | chunk)
            self._left[self._owners[chunk]] += slots_C[chunk]
        self._shelves = [_Shelf(chunks, look_ahead) for chunks in chunks_of]
        self._total = sum(self._left)
        self.num_repositories = sum(left > 0 for left in self._left)
        self._heap = [(-left, repository) for repository, left in enumerate(self._left)]
        heapq.heapify(self._heap)
        self._is_small = [left < self._small for left in self._left]
        self._small_ones = [repository for repository, left in enumerate(self._left) if 0 < left < self._small]

    def largest(self) -> int:
        """The repository with the most slots left."""
        heap, left = self._heap, self._left
        # Entries are updated lazily: sizes only shrink, so a top entry whose size is current is the largest.
        while -heap[0][0] != left[heap[0][1]]:
            heapq.heapreplace(heap, (-left[heap[0][1]], heap[0][1]))
        return heap[0][1]

    def choose_single(self) -> int:
        """A random repository for an unmixed row; -1 if none has two chunks."""
        largest = self.largest()
        if self._left[largest] >= self._capacity and not self._is_large(largest):
            self._full_place = self._next_place(self._full_place, self._capacity)
            return self._owners[self._order[self._full_place]]
        return largest if len(self._shelves[largest].within_reach) > 1 else _NONE

    def choose_pair(self) -> tuple[int, int] | None:
        """Two repositories for a mixed row, the first begins it; None if only one repository is left.

        A small repository is used whenever there is one. Otherwise small rests would pile up and the last rows stay half empty.
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
            # The larger one begins: if the small one has a single chunk, the row can still go on after it.
            return first, second
        second = self._next_of_others(first) if is_large else self._next_after(self._ample_place, first)
        return (first, second) if self._random.random() < 0.5 else (second, first)

    def plain_row(self, repository: int) -> list[int]:
        """An unmixed row: chunks of one repository until none within reach fits, from two files or more where possible.

        A row of a single file would be told from a mixed row by continuity of the text, not by its repository."""
        shelf, file_ids = self._shelves[repository], self._file_ids
        room = self._capacity
        chunk = shelf.take(room)
        first_file = only_file = file_ids[chunk & _NUMBER]
        chunks = []
        while chunk != _NONE:
            chunks.append(chunk & _NUMBER)
            room -= chunk >> _NUMBER_BITS
            only_file = only_file if file_ids[chunks[-1]] == first_file else _NONE
            chunk = shelf.take(room) if only_file == _NONE else shelf.take_of_other_file(room, file_ids, only_file)
        self._account(repository, self._capacity - room, chunks)
        return chunks

    def mixed_row(self, first: int, second: int) -> list[int]:
        """A mixed row: chunks of two repositories in turn, until none within reach of the one in turn fits.

        When the other repository is used up, this chunk ends the row, so the largest that fits is taken.
        """
        turn, other = self._shelves[first], self._shelves[second]
        rooms = [self._capacity]
        chunks = []
        while (chunk := turn.take(rooms[-1]) if other.within_reach else turn.take_largest(rooms[-1])) != _NONE:
            chunks.append(chunk & _NUMBER)
            rooms.append(rooms[-1] - (chunk >> _NUMBER_BITS))
            turn, other = other, turn
        used = [before - after for before, after in itertools.pairwise(rooms)]
        self._account(first, sum(used[::2]), chunks[::2])
        self._account(second, sum(used[1::2]), chunks[1::2])
        return chunks

    def _account(self, repository: int, slots: int, chunks: list[int]) -> None:
        """Record what a row took from a repository, and whether that is used up or small now."""
        for chunk in chunks:
            self._is_used[chunk] = 1
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
        """A random small repository other than `first`; -1 if there is none. Removes repositories that are used up."""
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
        """The next place in the order with an unused chunk of a repository that has `least` slots or more.

        There must be one. Places passed over never qualify again, because chunks only get used and repositories only shrink, so
        all calls together pass the order once.
        """
        order, is_used, owners, left = self._order, self._is_used, self._owners, self._left
        while is_used[order[place]] or left[owners[order[place]]] < least:
            place += 1
        return place

    def _next_after(self, place: int, first: int) -> int:
        """The owner of the next unused chunk of another repository than `first`."""
        order, is_used, owners = self._order, self._is_used, self._owners
        while is_used[order[place]] or owners[order[place]] == first:
            place += 1
        return owners[order[place]]

    def _next_of_others(self, large: int) -> int:
        """The same if most unused chunks are of `large`: passing these for each row is quadratic, so they are removed once."""
        others = self._others.get(large)
        if others is None:
            others = [chunk for chunk in reversed(self._order) if not self._is_used[chunk] and self._owners[chunk] != large]
            self._others[large] = others
        while self._is_used[others[-1]]:
            others.pop()
        return self._owners[others[-1]]


def _chunk_limits(num_tokens_F: INT64_ARRAY, config: PackingConfig) -> INT64_ARRAY:
    return np.full_like(num_tokens_F, config.piece_tokens)


PACKER = Packer(pack_dense, _chunk_limits)
