"""The set of hashes: what is found, which file it is from, and which hashes are too common to be in it."""

from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_prep.filters.ngram_table import NgramTable, ngram_table

HASHES = st.sampled_from([0, 1, 2, 2**53, 2**63, 2**64 - 2, 2**64 - 1]) | st.integers(0, 2**64 - 1)


def table_of(pairs: list[tuple[int, int]], files: list[int], max_examples: int) -> NgramTable:
    hashes = np.array([value for value, _ in pairs], dtype=np.uint64)
    return ngram_table(
        hashes, np.array([example for _, example in pairs], dtype=np.int32), np.array(files, dtype=np.int32), max_examples
    )


@given(st.lists(st.tuples(HASHES, st.integers(0, 5)), max_size=60), st.lists(HASHES, max_size=60), st.integers(1, 6))
def test_found_is_what_a_dictionary_finds(pairs: list[tuple[int, int]], asked: list[int], max_examples: int) -> None:
    examples = defaultdict(set)
    for value, example in pairs:
        examples[value].add(example)
    files = [10, 11, 12, 10, 11, 12]
    asked = asked + [value for value, _ in pairs[::2]]
    positions, found_files = table_of(pairs, files, max_examples).find(np.array(asked, dtype=np.uint64))
    expected = [i for i, value in enumerate(asked) if 0 < len(examples[value]) <= max_examples]
    assert positions.tolist() == expected
    assert found_files.tolist() == [files[min(examples[asked[i]])] for i in expected]


def test_many_hashes_at_random() -> None:
    random = np.random.default_rng(1)
    known = random.integers(0, 2**64, 20_000, dtype=np.uint64)
    asked = np.concatenate((known[::7], random.integers(0, 2**64, 20_000, dtype=np.uint64)))
    table = ngram_table(known, np.zeros(len(known), np.int32), np.zeros(1, np.int32), 1)
    assert table.find(asked)[0].tolist() == np.flatnonzero(np.isin(asked, known)).tolist()
    assert table.slots.nbytes <= 4 * len(known)
