"""Cutting: no token lost, line ends where possible, byte offsets exact for sentencepiece and byte-level vocabularies."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.tokenization.chunking import VocabularyTable, byte_offsets, chunk_files, vocabulary_table
from mose.tokenizer import Tokenizer
from tests.data_prep.repositories import make_byte_level_tokenizer
from tests.datasets import make_tokenizer

NEWLINE = 1
# Four tokens of one byte, of which number 1 ends a line.
TABLE = VocabularyTable(np.array([2, 3, 2, 2], dtype=np.uint16), merges_space_mark=False)
FILES = st.lists(st.lists(st.integers(0, 3), max_size=40), max_size=6)


def cut_files(files: list[list[int]], limits: list[int]) -> list[list[int]]:
    """Bounds of the chunks of each file, from its own beginning."""
    tokens = np.array(list(itertools.chain(*files)), dtype=np.uint16)
    starts = np.cumsum([0, *map(len, files)])
    bounds, counts = chunk_files(TABLE.marks(tokens), starts, np.array(limits, dtype=np.int64))
    firsts = np.cumsum(counts) - counts
    spans = zip(firsts.tolist(), counts.tolist(), starts.tolist(), strict=False)
    return [(bounds[first : first + count + 1] - start).tolist() for first, count, start in spans]


@given(FILES, st.integers(1, 12), st.integers(0, 3))
def test_files_are_cut_as_if_each_stood_alone(files: list[list[int]], limit: int, more: int) -> None:
    limits = [limit + more * number for number in range(len(files))]
    for tokens, own_limit, bounds in zip(files, limits, cut_files(files, limits), strict=True):
        if not tokens:
            assert len(bounds) == 1
            continue
        assert bounds[0] == 0
        assert bounds[-1] == len(tokens)
        assert all(1 <= size <= own_limit for size in np.diff(bounds))
        for start, end in itertools.pairwise(bounds[:-1]):
            reachable = [i + 1 for i in range(start, start + own_limit) if tokens[i] == NEWLINE]
            assert end == (reachable[-1] if reachable else start + own_limit)


@pytest.fixture(scope="module")
def sentencepiece_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"), 600)


@pytest.fixture(scope="module")
def byte_level_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer"))


TEXTS = st.lists(st.text(st.sampled_from("ab \n\t\r_(é漢\u2581\u3000\U0001f389<0x0A>"), max_size=80), min_size=1, max_size=4)


@given(TEXTS)
def test_byte_offsets_are_exact_for_sentencepiece(sentencepiece_tokenizer: Tokenizer, texts: list[str]) -> None:
    _check_offsets(sentencepiece_tokenizer, texts)


@given(TEXTS)
def test_byte_offsets_are_exact_for_byte_level(byte_level_tokenizer: Tokenizer, texts: list[str]) -> None:
    _check_offsets(byte_level_tokenizer, texts)


def _check_offsets(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Each chunk's bytes, decoded, are what the tokenizer itself says of its tokens, when no character is cut in two."""
    table = vocabulary_table(tokenizer)
    parts = [tokenizer.encode(text) for text in texts]
    tokens = np.concatenate(parts)
    marks = table.marks(tokens)
    bounds, counts = chunk_files(marks, np.cumsum([0, *map(len, parts)]), np.full(len(texts), 3))
    offsets = byte_offsets(marks, bounds, counts, texts, table.merges_space_mark)
    assert offsets.shape == (len(bounds) - 1, 2)
    owners = np.repeat(np.arange(len(texts)), counts).tolist()
    for start, end, owner, (first, last) in zip(bounds[:-1], bounds[1:], owners, offsets.tolist(), strict=True):
        decoded = tokenizer.decode(tokens[start:end].tolist())
        if "\ufffd" not in decoded:
            # sentencepiece cannot tell a space from U+2581.
            assert texts[owner].encode()[first:last].decode().replace("\u2581", " ") == decoded.replace("\u2581", " ")
    for number, text in enumerate(texts):
        own = offsets[np.array(owners, dtype=np.int64) == number]
        assert [0, *own[:, 1]] == [*own[:, 0], len(text.encode())]


def test_a_newline_ends_a_line_with_and_without_byte_fallback(
    sentencepiece_tokenizer: Tokenizer, byte_level_tokenizer: Tokenizer
) -> None:
    for tokenizer in (sentencepiece_tokenizer, byte_level_tokenizer):
        table = vocabulary_table(tokenizer)
        tokens = tokenizer.encode("a = 1\nb = 2\n")
        ends = [i for i, token in enumerate(tokens) if table.marks_V[token] % 2]
        assert [tokenizer.decode(tokens[: i + 1]) for i in ends] == ["a = 1\n", "a = 1\nb = 2\n"]


def test_special_tokens_have_no_bytes(byte_level_tokenizer: Tokenizer) -> None:
    table = vocabulary_table(byte_level_tokenizer)
    assert not table.marks_V[list(byte_level_tokenizer.special.ids())].any()
