"""A set of 64-bit n-gram hashes, each with its evaluation file: built once, looked up in bulk.

Nearly all look-ups fail, because training text rarely repeats an evaluation file. A Bloom filter, small enough for the cache,
answers those with two memory accesses; only the rest needs a binary search in the sorted hashes.

Letters: G hashes looked up, S hashes of the set. Memory: 12 bytes per hash, and 2 to 4 of a Bloom filter (at most 16 MiB).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mose.array_types import INT64_ARRAY
from mose.seeding import UINT64_ARRAY

INT32_ARRAY = NDArray[np.int32]

# Minimum bits of the filter per hash. Two bits are set per hash, so that 1 look-up in 64 is a false positive.
_SLOTS = 16
# Base-2 logarithms of the number of bits: 2^27 bits are 16 MiB, which still fit into a processor's cache.
_MIN_SLOT_BITS, _MAX_SLOT_BITS = 10, 27
_HASH_BITS = 64


@dataclass(frozen=True)
class NgramTable:
    """Hashes in ascending order; a Bloom filter of their leading bits answers most look-ups."""

    hashes_S: UINT64_ARRAY
    files_S: INT32_ARRAY
    """Number of the evaluation file of each hash; the first one if several files have it."""
    slots: NDArray[np.uint8]
    """The Bloom filter, 8 slots per byte. Each hash sets two slots: the numbers in its leading bits and in the bits after them.

    The hashes are uniform already, so their own bits serve as the filter's hash functions.
    """

    def find(self, hashes_G: UINT64_ARRAY) -> tuple[INT64_ARRAY, INT32_ARRAY]:
        """The indices of those `hashes_G` [G] that are in the set, ascending, and the evaluation file of each."""
        maybe = np.flatnonzero(self._is_set(_leading(hashes_G, self._bits())))
        maybe = maybe[self._is_set(_next(hashes_G[maybe], self._bits())) > 0]
        wanted = hashes_G[maybe]
        places = np.searchsorted(self.hashes_S, wanted)
        places[places == len(self.hashes_S)] = 0
        # No hash passes the filter of an empty set, so that index 0 exists whenever it is used.
        found = self.hashes_S[places] == wanted
        return maybe[found], self.files_S[places[found]]

    def _bits(self) -> int:
        return (8 * len(self.slots)).bit_length() - 1

    def _is_set(self, slots_G: INT64_ARRAY) -> NDArray[np.uint8]:
        return self.slots.take(slots_G >> 3) >> (slots_G & 7).astype(np.uint8) & np.uint8(1)


def ngram_table(hashes: UINT64_ARRAY, examples: INT32_ARRAY, file_of_example: INT32_ARRAY, max_examples: int) -> NgramTable:
    """The set of those `hashes` that occur in at most `max_examples` examples; `examples` is the example of each, from 0."""
    # Sorted by hash and then example, repetitions are adjacent: distinct examples per hash can be counted without a dictionary.
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
