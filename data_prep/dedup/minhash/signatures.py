"""Shingles to MinHash signatures: rows of 32-bit numbers, equal in one place with the probability of the Jaccard similarity.

`one_permutation` hashes every shingle once: the hash chooses one of P bins, and each bin keeps its least value (Li, Owen, Zhang
2012). A short document leaves bins empty. These are filled from a further hash of the same shingles, round after round, as in
fast similarity sketching (Dahlgaard, Knudsen, Thorup 2017): unlike values copied from other bins, these are independent. Bins
that `ROUNDS` rounds leave empty (documents of few shingles) copy the next filled bin (Shrivastava, Li 2014).

`classic` hashes every shingle with P functions, as the paper did: P times the work for the same estimate.

Letters: D documents, W shingles of all of them, P places of a signature.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.dedup.minhash.shingles import BATCH_CHARACTERS, Shingles
from mose.array_types import INT64_ARRAY
from mose.seeding import UINT64_ARRAY, counter_random

UINT32_ARRAY = NDArray[np.uint32]
Method = Literal["one_permutation", "classic"]

EMPTY = np.uint32(0xFFFFFFFF)
"""The value of an empty place; all places of a document without shingles."""
ROUNDS = 16
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
# Multipliers of SplitMix64 (Steele, Lea, Flood 2014).
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_ROUND = np.uint64(0x9E3779B97F4A7C15)
# Any odd number: distinguishes a value copied over one bin from one copied over two.
_DISTANCE = np.uint32(0x9E3779B1)
_CLASSIC_SHINGLES = 256


def signatures_of(shingles: Shingles, num_places: int, method: Method) -> UINT32_ARRAY:
    """The signature [D, P] of each document."""
    return classic(shingles, num_places) if method == "classic" else one_permutation(shingles, num_places)


def one_permutation(shingles: Shingles, num_places: int) -> UINT32_ARRAY:
    """Signatures [D, P] by one-permutation hashing; empty bins are filled as the module describes."""
    lengths_D = shingles.lengths_D
    hashes_W = _hash(shingles.ids_W)
    table = _least_values(hashes_W, lengths_D, num_places)
    open_D = np.flatnonzero(lengths_D)
    lengths = lengths_D[open_D]
    for _ in range(1, ROUNDS):
        # Only documents that still have an empty place take part in a round; their hashes are hashed again.
        is_short = (table[open_D] == EMPTY).any(axis=1)
        if not is_short.any():
            return table
        hashes_W = _hash(hashes_W[np.repeat(is_short, lengths)] + _ROUND)
        open_D, lengths = open_D[is_short], lengths[is_short]
        before = table[open_D]
        table[open_D] = np.where(before == EMPTY, _least_values(hashes_W, lengths, num_places), before)
    return _filled_from_the_right(table)


def classic(shingles: Shingles, num_places: int) -> UINT32_ARRAY:
    """Signatures [D, P] by P hash functions of the multiply-add-shift family (Dietzfelbinger 1996)."""
    # Fixed keys: signatures of different runs can be compared.
    keys = counter_random(1, np.arange(2 * num_places, dtype=np.uint64))
    factors_P, terms_P = keys[:num_places] | np.uint64(1), keys[num_places:]
    table = np.full((len(shingles.lengths_D), num_places), EMPTY, np.uint32)
    ends_D = np.cumsum(shingles.lengths_D)
    for document, (end, length) in enumerate(zip(ends_D.tolist(), shingles.lengths_D.tolist(), strict=True)):
        # Each distinct shingle is hashed P times, so sorting out the repeated half pays here.
        hashes_S = _hash(np.unique(shingles.ids_W[end - length : end])) & _LOW
        for start in range(0, len(hashes_S), _CLASSIC_SHINGLES):
            block = hashes_S[start : start + _CLASSIC_SHINGLES, None]
            values_P = ((block * factors_P + terms_P) >> _HALF).min(axis=0).astype(np.uint32)
            np.minimum(table[document], values_P, out=table[document])
    return table


def estimate(first_P: UINT32_ARRAY, second_P: UINT32_ARRAY) -> float:
    """Estimated Jaccard similarity of two signatures: the share of equal places."""
    return float(np.mean(first_P == second_P))


def _hash(values_W: UINT64_ARRAY) -> UINT64_ARRAY:
    """A 64-bit hash of each number, whose two halves look independent: two multiplications, where `mix` has five steps."""
    hashes = values_W * _MULTIPLIER_1
    hashes ^= hashes >> _HALF
    hashes *= _MULTIPLIER_2
    hashes ^= hashes >> _HALF
    return hashes


def _least_values(hashes_W: UINT64_ARRAY, lengths_D: INT64_ARRAY, num_places: int) -> UINT32_ARRAY:
    """The least low half of each document's hashes in each bin [D, P]; the high half chooses the bin."""
    rows_W = np.repeat(np.arange(len(lengths_D)) * num_places, lengths_D)
    table = np.full(len(lengths_D) * num_places, EMPTY, np.uint32)
    for start in range(0, len(hashes_W), BATCH_CHARACTERS):
        hashes = hashes_W[start : start + BATCH_CHARACTERS]
        # A multiplication instead of a remainder maps 32 bits to 0 ... P - 1 (Lemire 2019).
        places = ((hashes >> _HALF) * np.uint64(num_places) >> _HALF).view(np.int64)
        places += rows_W[start : start + BATCH_CHARACTERS]
        np.minimum.at(table, places, hashes.astype(np.uint32))
    return table.reshape(len(lengths_D), num_places)


def _filled_from_the_right(table: UINT32_ARRAY) -> UINT32_ARRAY:
    """Every empty place copies the next filled one, circularly, with its distance mixed in."""
    rows = np.flatnonzero((table == EMPTY).any(axis=1) & (table != EMPTY).any(axis=1))
    if not len(rows):
        return table
    num_places = table.shape[1]
    twice = np.concatenate((table[rows], table[rows]), axis=1)
    places = np.where(twice == EMPTY, 2 * num_places, np.arange(2 * num_places))
    nearest = np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1][:, :num_places]
    distance = (nearest - np.arange(num_places)).astype(np.uint32)
    table[rows] = np.take_along_axis(twice, nearest, axis=1) + distance * _DISTANCE
    return table
