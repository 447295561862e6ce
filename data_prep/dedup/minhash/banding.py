"""Signatures to candidate pairs: locality-sensitive hashing by bands.

A signature is cut into B bands of R values. Documents that agree in a whole band share its key and are compared. Two documents of
Jaccard similarity s share at least one with probability 1 - (1 - s^R)^B: an S-curve that rises near (1 / B)^(1 / R).

Letters: D documents, P places of a signature, B bands, K keys of many documents in ascending order, E pairs.
"""

import numpy as np

from data_prep.dedup.minhash.signatures import UINT32_ARRAY
from mose.array_types import INT64_ARRAY
from mose.seeding import UINT64_ARRAY, mix

# Any odd number is invertible modulo 2^64; PCG's multiplier (O'Neill 2014).
_MULTIPLIER = np.uint64(6364136223846793005)
_BAND = np.uint64(0x9E3779B97F4A7C15)


def collision_probability(similarity: float, bands: int, rows_per_band: int) -> float:
    """Probability that two documents of this Jaccard similarity share a band."""
    return float(1.0 - (1.0 - similarity**rows_per_band) ** bands)


def band_keys(signatures: UINT32_ARRAY, bands: int, rows_per_band: int, namespace: int) -> UINT64_ARRAY:
    """The key of each band [D, B]: a 64-bit hash of its values, its number and `namespace`.

    Documents of different namespaces share no key, nor do different bands, so that all keys can be sorted together.
    """
    values = signatures[:, : bands * rows_per_band].reshape(len(signatures), bands, rows_per_band).astype(np.uint64)
    start = mix(np.arange(bands, dtype=np.uint64) + mix(np.array([namespace], np.uint64)) + _BAND)
    keys = np.broadcast_to(start, (len(signatures), bands)).copy()
    for row in range(rows_per_band):
        keys *= _MULTIPLIER
        keys += values[:, :, row]
    return mix(keys)


def candidate_pairs(
    keys_K: UINT64_ARRAY, documents_K: UINT64_ARRAY, max_documents: int
) -> tuple[UINT64_ARRAY, UINT64_ARRAY, int]:
    """Pairs [E] of documents that share a key, with repetitions, and the number of keys that more than `max_documents` share.

    Of a key that more documents share (a licence text, a boilerplate file), each is paired with the first and with the next one
    only: all pairs would be quadratic. `keys_K` is ascending, and `documents_K` is ascending within a key.
    """
    starts, sizes = _runs(keys_K)
    firsts: list[UINT64_ARRAY] = [documents_K[:0]]
    seconds: list[UINT64_ARRAY] = [documents_K[:0]]
    for size in np.unique(sizes[(sizes > 1) & (sizes <= max_documents)]).tolist():
        left, right = np.triu_indices(size, 1)
        starts_of_size = starts[sizes == size, None]
        firsts.append(documents_K[(starts_of_size + left).ravel()])
        seconds.append(documents_K[(starts_of_size + right).ravel()])
    large = np.flatnonzero(sizes > max_documents)
    for start, size in zip(starts[large].tolist(), sizes[large].tolist(), strict=True):
        members = documents_K[start : start + size]
        firsts += [np.broadcast_to(members[:1], size - 1), members[1:-1]]
        seconds += [members[1:], members[2:]]
    return np.concatenate(firsts), np.concatenate(seconds), len(large)


def oriented(first_E: UINT64_ARRAY, second_E: UINT64_ARRAY) -> tuple[UINT64_ARRAY, UINT64_ARRAY]:
    """The same pairs, each in the one order that a hash of both chooses.

    In half of the pairs the smaller number stands first: work that is divided by the first document is divided evenly.
    """
    swapped = (mix(first_E ^ second_E) & np.uint64(1)).astype(np.bool_) ^ (first_E > second_E)
    return np.where(swapped, second_E, first_E), np.where(swapped, first_E, second_E)


def _runs(keys_K: UINT64_ARRAY) -> tuple[INT64_ARRAY, INT64_ARRAY]:
    """Start and length of every run of equal keys."""
    is_start = np.append(True, keys_K[1:] != keys_K[:-1])[: len(keys_K)]
    starts = np.flatnonzero(is_start)
    return starts, np.diff(np.append(starts, len(keys_K)))
