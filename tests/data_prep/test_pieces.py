"""Cutting: no token lost, line ends where possible, byte offsets exact for sentencepiece and byte-level vocabularies."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.pieces import VocabularyTable, byte_offsets, cut, vocabulary_table
from mose.tokenizer import Tokenizer
from tests.data_prep.repositories import make_byte_level_tokenizer
from tests.datasets import make_tokenizer

NEWLINE = 1
TABLE = VocabularyTable(np.array([False, True, False, False]), np.ones(4, dtype=np.int64), merges_space_mark=False)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 12))
def test_pieces_are_the_whole_file_in_order(tokens: list[int], limit: int) -> None:
    bounds = cut(np.array(tokens, dtype=np.uint16), limit, TABLE)
    assert bounds[0] == 0
    assert bounds[-1] == len(tokens)
    assert all(1 <= size <= limit for size in np.diff(bounds))


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 12))
def test_a_cut_stands_at_the_last_line_end_within_reach(tokens: list[int], limit: int) -> None:
    bounds = cut(np.array(tokens, dtype=np.uint16), limit, TABLE).tolist()
    for start, end in itertools.pairwise(bounds[:-1]):
        reachable = [i + 1 for i in range(start, start + limit) if tokens[i] == NEWLINE]
        assert end == (reachable[-1] if reachable else start + limit)


def test_an_empty_file_has_no_piece() -> None:
    assert cut(np.array([], dtype=np.uint16), 5, TABLE).tolist() == [0]


@pytest.fixture(scope="module")
def sentencepiece_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), 600)


@pytest.fixture(scope="module")
def byte_level_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer"))


TEXTS = st.text(st.sampled_from("ab \n\t\r_(é漢\u2581\u3000\U0001f389<0x0A>"), min_size=1, max_size=80)


@given(TEXTS)
def test_byte_offsets_are_exact_for_sentencepiece(sentencepiece_tokenizer: Tokenizer, text: str) -> None:
    _check_offsets(sentencepiece_tokenizer, text)


@given(TEXTS)
def test_byte_offsets_are_exact_for_byte_level(byte_level_tokenizer: Tokenizer, text: str) -> None:
    _check_offsets(byte_level_tokenizer, text)


def _check_offsets(tokenizer: Tokenizer, text: str) -> None:
    """Each piece's bytes, decoded, are what the tokenizer itself says of its tokens, when no character is cut in two."""
    table = vocabulary_table(tokenizer)
    tokens = tokenizer.encode(text)
    bounds = cut(tokens, 3, table)
    offsets = byte_offsets(tokens, bounds, text, table)
    content = text.encode()
    assert offsets[0] == 0
    assert offsets[-1] == len(content)
    for start, end, first, last in zip(bounds[:-1], bounds[1:], offsets[:-1], offsets[1:], strict=True):
        decoded = tokenizer.decode(tokens[start:end])
        if "\ufffd" not in decoded:
            # sentencepiece cannot tell a space from U+2581.
            assert content[first:last].decode().replace("\u2581", " ") == decoded.replace("\u2581", " ")


def test_a_newline_ends_a_line_with_and_without_byte_fallback(
    sentencepiece_tokenizer: Tokenizer, byte_level_tokenizer: Tokenizer
) -> None:
    for tokenizer in (sentencepiece_tokenizer, byte_level_tokenizer):
        table = vocabulary_table(tokenizer)
        tokens = tokenizer.encode("a = 1\nb = 2\n")
        ends = [i for i, token in enumerate(tokens) if table.ends_line_V[token]]
        assert [tokenizer.decode(tokens[: i + 1]) for i in ends] == ["a = 1\n", "a = 1\nb = 2\n"]


def test_special_tokens_have_no_bytes(byte_level_tokenizer: Tokenizer) -> None:
    table = vocabulary_table(byte_level_tokenizer)
    assert not table.num_bytes_V[list(byte_level_tokenizer.special.ids())].any()
