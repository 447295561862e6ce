"""Covers shingles: equal numbers for equal 5-grams whatever else the batch holds, and the exact Jaccard similarity."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_prep.dedup.minhash.shingles import BATCH_CHARACTERS, batches, jaccard, normalize, shingle_set, shingles_of
from tests.data_prep.dedup.documents import changed, code, shingles, similarity

TEXT = st.text(alphabet=st.sampled_from("ab c\n\té\u0100\U0001f600\ud800"), max_size=30)


def test_layout_does_not_count_and_case_does() -> None:
    assert normalize("  if x:\n\treturn  1\r\n") == "if x: return 1"
    assert normalize("If") != normalize("if")
    assert normalize(" \n") == ""


@given(st.lists(TEXT, max_size=6))
def test_each_document_of_a_batch_has_its_own_shingles(texts: list[str]) -> None:
    normalized = [normalize(text) for text in texts]
    batch = shingles_of(normalized)
    ends = np.cumsum(batch.lengths_D)
    for text, end, length in zip(normalized, ends, batch.lengths_D, strict=True):
        found = np.unique(batch.ids_W[end - length : end])
        assert np.array_equal(found, shingle_set(text))
        assert len(found) == len(shingles(text))


@given(TEXT, TEXT)
def test_similarity_is_that_of_the_sets(first: str, second: str) -> None:
    first, second = normalize(first), normalize(second)
    assert jaccard(shingle_set(first), shingle_set(second)) == similarity(first, second)


def test_similarity_of_code() -> None:
    text = code(1)
    for words in (0, 1, 10, 100):
        other = changed(text, words)
        assert jaccard(shingle_set(text), shingle_set(other)) == similarity(text, other)


def test_the_ends_of_the_definition() -> None:
    assert len(shingle_set("")) == 0
    assert jaccard(shingle_set(""), shingle_set("")) == 0.0
    assert len(shingle_set("abc")) == 1 and jaccard(shingle_set("abc"), shingle_set("abc")) == 1.0
    assert jaccard(shingle_set("abc"), shingle_set("abd")) == 0.0


def test_batches_are_consecutive_and_small() -> None:
    texts = ["x" * size for size in (1, BATCH_CHARACTERS, 0, 5, 3 * BATCH_CHARACTERS, 2, *[700] * 100)]
    found = list(batches(texts))
    assert [number for part in found for number in range(part.start, part.stop)] == list(range(len(texts)))
    sizes = [sum(max(len(text), 5) for text in texts[part]) for part in found]
    assert all(size <= BATCH_CHARACTERS or part.stop - part.start == 1 for part, size in zip(found, sizes, strict=True))
    assert list(batches([])) == []
