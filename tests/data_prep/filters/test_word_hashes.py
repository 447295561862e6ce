"""Words and hashes of several in a row, against regular expressions and Python's integers."""

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_prep.filters.word_hashes import MAX_WORD_BYTES, Words, find_words, fold, ngram_hashes

WORD = re.compile(rb"[0-9A-Za-z_\x80-\xff]{1,64}")
PIECES = st.sampled_from([b"a", b"A", b"_", b"9", b" ", b"\n", b".", b"\0", "é".encode(), b"x" * 7, b"y" * 63, b"Z" * 130])
TEXTS = st.lists(PIECES, max_size=40).map(b"".join) | st.binary(max_size=200)


def words_of(text: bytes) -> list[bytes]:
    return [match.group().lower() for match in WORD.finditer(text)]


@given(TEXTS, st.integers(0, 1000))
def test_words_stand_where_a_regular_expression_finds_them(text: bytes, offset: int) -> None:
    words = find_words(fold(text), offset)
    spans = [match.span() for match in WORD.finditer(text)]
    assert list(zip((words.starts_W - offset).tolist(), (words.ends_W - offset).tolist(), strict=True)) == spans
    assert len(words) == len(spans)


@given(TEXTS)
def test_hashes_are_equal_exactly_where_words_are(text: bytes) -> None:
    expected = words_of(text)
    hashes = find_words(fold(text)).hashes_W.tolist()
    by_word = dict(zip(expected, hashes, strict=True))
    assert [by_word[word] for word in expected] == hashes
    assert len(set(by_word.values())) == len(by_word)


def test_words_of_any_length_and_those_that_differ_in_one_byte_have_their_own_hash() -> None:
    words = {b"a" * length for length in range(1, MAX_WORD_BYTES + 1)}
    words |= {b"a" * i + b"b" + b"a" * (MAX_WORD_BYTES - i - 1) for i in range(MAX_WORD_BYTES)}
    hashes = find_words(fold(b" ".join(sorted(words)))).hashes_W
    assert len(set(hashes.tolist())) == len(words)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.integers(1, 40))
def test_ngram_hashes_are_the_polynomial_of_the_words_hashes(values: list[int], size: int) -> None:
    ngrams = ngram_hashes(np.array(values, dtype=np.uint64), size).tolist()
    expected = []
    for first in range(len(values) - size + 1):
        total = 0
        for value in values[first : first + size]:
            total = (total * 6364136223846793005 + value) % 2**64
        expected.append(total)
    assert ngrams == expected


def test_the_same_words_in_another_order_have_another_hash() -> None:
    words = find_words(fold(b"a b c d e f g h")).hashes_W
    random = np.random.default_rng(0)
    orders = {tuple(random.permutation(8).tolist()) for _ in range(2000)}
    assert len({int(ngram_hashes(words[list(order)], 8)[0]) for order in orders}) == len(orders)


@given(TEXTS, TEXTS, st.integers(0, 20))
def test_words_of_two_texts_are_joined_and_the_last_taken(first: bytes, second: bytes, number: int) -> None:
    joined = find_words(fold(first)).joined(find_words(fold(second), len(first)))
    whole = [find_words(fold(first)), find_words(fold(second), len(first))]
    for name in ("hashes_W", "starts_W", "ends_W"):
        assert getattr(joined, name).tolist() == [value for part in whole for value in getattr(part, name).tolist()]
        expected = getattr(joined, name).tolist()
        assert getattr(joined.last(number), name).tolist() == (expected[-number:] if number else [])
    assert isinstance(joined, Words)
