"""Covers banding: candidates are those of datasketch's LSH on the same signatures, and the S-curve is the one measured."""

import itertools

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH

from data_prep.dedup.minhash.banding import band_keys, candidate_pairs, collision_probability, oriented
from data_prep.dedup.minhash.shingles import shingles_of
from data_prep.dedup.minhash.signatures import UINT32_ARRAY, one_permutation
from tests.data_prep.dedup.documents import changed, code

BANDS, ROWS = 25, 10


def candidates(signatures: UINT32_ARRAY, max_documents: int = 1000) -> set[tuple[int, int]]:
    """Pairs of row numbers of signatures that share a band."""
    keys = band_keys(signatures, BANDS, ROWS, 0)
    documents = np.repeat(np.arange(len(signatures), dtype=np.uint64), BANDS)
    order = np.lexsort((documents, keys.ravel()))
    first, second, _ = candidate_pairs(keys.ravel()[order], documents[order], max_documents)
    return set(zip(first.tolist(), second.tolist(), strict=True))


def test_candidates_are_those_of_datasketch() -> None:
    texts = [changed(code(seed), 4 * number, number) for seed in range(12) for number in range(5)]
    signatures = one_permutation(shingles_of(texts), 256)
    index = MinHashLSH(params=(BANDS, ROWS), num_perm=256)
    minhashes = [MinHash(num_perm=256, hashvalues=row.astype(np.uint64), scheme="legacy") for row in signatures]
    for number, minhash in enumerate(minhashes):
        index.insert(number, minhash)
    expected = {
        (number, other) for number, minhash in enumerate(minhashes) for other in index.query(minhash) if number < int(other)
    }
    assert 20 < len(expected) < 300
    assert candidates(signatures) == expected


def test_the_curve_is_the_probability_that_was_measured() -> None:
    random = np.random.default_rng(3)
    for similarity in (0.5, 0.7, 0.8, 0.9):
        first = random.integers(0, 1 << 32, (1500, 256), dtype=np.uint32)
        agree = random.random(first.shape) < similarity
        second = np.where(agree, first, random.integers(0, 1 << 32, first.shape, dtype=np.uint32))
        shared = (band_keys(first, BANDS, ROWS, 0) == band_keys(second, BANDS, ROWS, 0)).any(axis=1)
        assert shared.mean() == pytest.approx(collision_probability(similarity, BANDS, ROWS), abs=0.05)
    assert collision_probability(0.7, BANDS, ROWS) == pytest.approx(0.511, abs=1e-3)
    assert [collision_probability(end, BANDS, ROWS) for end in (0.0, 1.0)] == [0.0, 1.0]


def test_bands_and_namespaces_share_no_key() -> None:
    same = np.full((1, 256), 7, np.uint32)
    keys = np.concatenate([band_keys(same, BANDS, ROWS, namespace) for namespace in range(3)])
    assert len(np.unique(keys)) == 3 * BANDS
    assert band_keys(same, 4, 5, 0).shape == (1, 4)


def test_all_pairs_of_a_key_and_a_chain_where_too_many_share_it() -> None:
    keys = np.repeat(np.array([1, 2, 5, 9], np.uint64), [2, 1, 3, 5])
    documents = np.array([4, 8, 1, 0, 3, 7, 10, 11, 12, 13, 14], np.uint64)
    first, second, large = candidate_pairs(keys, documents, 4)
    expected = {(4, 8), (0, 3), (0, 7), (3, 7), *((10, other) for other in (11, 12, 13, 14)), (11, 12), (12, 13), (13, 14)}
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected and len(first) == len(expected)
    assert large == 1
    first, second, large = candidate_pairs(keys[:0], documents[:0], 4)
    assert len(first) == len(second) == large == 0


def test_a_pair_has_one_order() -> None:
    first, second = map(np.array, zip(*itertools.combinations(range(200), 2), strict=True))
    first, second = first.astype(np.uint64), second.astype(np.uint64)
    one, two = oriented(first, second), oriented(second, first)
    assert np.array_equal(one, two)
    assert 0.45 < np.mean(one[0] == first) < 0.55
    assert np.array_equal(np.sort(np.stack(one), axis=0), np.sort(np.stack([first, second]), axis=0))
