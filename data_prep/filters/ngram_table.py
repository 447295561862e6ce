"""A set of 64-bit hashes of n words in a row, each with the evaluation file that it came from: built once, looked up in bulk.

Letters: G hashes looked up, S hashes of the set. Memory: 12 bytes per hash, and 2 to 4 of a Bloom filter (at most 16 MiB).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mose.array_types import INT64_ARRAY
from mose.seeding import UINT64_ARRAY

INT32_ARRAY = NDArray[np.int32]

# Bits of the filter for each hash, at least: two are set, so that 1 look-up in 64 goes on to the sorted hashes in vain.
_SLOTS = 16
# Logarithms of the number of bits: 2^27 are 16 MiB, what a processor's cache may still hold.
_MIN_SLOT_BITS, _MAX_SLOT_BITS = 10, 27
_HASH_BITS = 64


@dataclass(frozen=True)
class NgramTable:
    """Hashes in ascending order; a Bloom filter of their leading bits answers most look-ups."""

    hashes_S: UINT64_ARRAY
    files_S: INT32_ARRAY
    """Number of the evaluation file that each is from, the first of several."""
    slots: NDArray[np.uint8]
    """The filter, 8 slots a byte. Set are the slots that the leading bits of a hash number, and the bits next to them."""

    def find(self, hashes_G: UINT64_ARRAY) -> tuple[INT64_ARRAY, INT32_ARRAY]:
        """Which of `hashes_G` are in the set, in ascending order, and the evaluation file of each."""
        maybe = np.flatnonzero(self._is_set(_leading(hashes_G, self._bits())))
        maybe = maybe[self._is_set(_next(hashes_G[maybe], self._bits())) > 0]
        wanted = hashes_G[maybe]
        places = np.searchsorted(self.hashes_S, wanted)
        places[places == len(self.hashes_S)] = 0
        # Nothing passes the filter of an empty set, so that 0 is a place wherever there is one to look at.
        found = self.hashes_S[places] == wanted
        return maybe[found], self.files_S[places[found]]

    def _bits(self) -> int:
        return (8 * len(self.slots)).bit_length() - 1

    def _is_set(self, slots_G: INT64_ARRAY) -> NDArray[np.uint8]:
        return self.slots.take(slots_G >> 3) >> (slots_G & 7).astype(np.uint8) & np.uint8(1)


def ngram_table(hashes: UINT64_ARRAY, examples: INT32_ARRAY, file_of_example: INT32_ARRAY, max_examples: int) -> NgramTable:
    """The set of the `hashes` that at most `max_examples` examples have; `examples` says which has each, as numbers from 0."""
    order = np.lexsort((examples, hashes))
    hashes, examples = hashes[order], examples[order]
    is_new_hash = np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]
    is_new_pair = is_new_hash | np.append(True, examples[1:] != examples[:-1])[: len(hashes)]
    firsts = np.flatnonzero(is_new_hash)
    num_examples = np.add.reduceat(is_new_pair, firsts, dtype=np.int64) if len(firsts) else firsts
    kept = firsts[num_examples <= max_examples]
    bits = min(max(int(len(kept) * _SLOTS).bit_length(), _MIN_SLOT_BITS), _MAX_SLOT_BITS)
    slots = np.zeros(1 << bits, dtype=np.bool_)
    slots[_leading(hashes[kept], bits)] = True
    slots[_next(hashes[kept], bits)] = True
    return NgramTable(hashes[kept], file_of_example[examples[kept]], np.packbits(slots, bitorder="little"))


def _leading(hashes: UINT64_ARRAY, bits: int) -> INT64_ARRAY:
    return (hashes >> np.uint64(_HASH_BITS - bits)).view(np.int64)


def _next(hashes: UINT64_ARRAY, bits: int) -> INT64_ARRAY:
    return _leading(hashes << np.uint64(bits), bits)
