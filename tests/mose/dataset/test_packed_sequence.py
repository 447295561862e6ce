"""Packed rows: built as Figure 2 says, taken apart again, and refused when they are not one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mose.dataset.packed_sequence import (
    SpecialTokens,
    assemble,
    assemble_rows,
    check_row,
    packed_length,
    snippet_bounds,
    token_dtype,
)
from mose.errors import MoseError

SPECIAL = SpecialTokens(pad=0, unk=1, sep=2, cls=3, mask=4)
DTYPE = token_dtype(100)
SNIPPETS = st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=8), min_size=1, max_size=5)


def arrays(snippets: list[list[int]]) -> list[np.ndarray]:
    return [np.array(snippet, dtype=DTYPE) for snippet in snippets]


def test_a_row_is_written_out_as_in_the_figure() -> None:
    row = assemble(arrays([[10, 11], [12]]), SPECIAL, 9, DTYPE)
    assert row.tolist() == [0, 0, 0, 2, 10, 11, 2, 12, 3]


@given(SNIPPETS, st.integers(0, 6))
def test_snippets_come_back(snippets: list[list[int]], padding: int) -> None:
    num_tokens = packed_length([len(snippet) for snippet in snippets])
    row = assemble(arrays(snippets), SPECIAL, num_tokens + padding, DTYPE)
    assert [row[start:end].tolist() for start, end in snippet_bounds(row, num_tokens, SPECIAL)] == snippets
    assert check_row(row, num_tokens, len(snippets), SPECIAL) is None


def test_a_row_that_does_not_fit_is_refused() -> None:
    with pytest.raises(MoseError, match="7 tokens, at most 6"):
        assemble(arrays([[10, 11], [12, 13]]), SPECIAL, 6, DTYPE)


@pytest.mark.parametrize(
    ("slot", "value", "expected"),
    [
        (0, 9, "slots before 3 are not all <pad>"),
        (3, 9, "slot 3 is 9, expected <sep>"),
        (8, 9, "last slot is 9, expected <cls>"),
        (6, 9, "1 snippets, num_snippets says 2"),
    ],
)
def test_a_damaged_row_is_told(slot: int, value: int, expected: str) -> None:
    row = assemble(arrays([[10, 11], [12]]), SPECIAL, 9, DTYPE)
    assert check_row(row, 6, 2, SPECIAL) is None
    row[slot] = value
    assert check_row(row, 6, 2, SPECIAL) == expected


@pytest.mark.parametrize("num_tokens", [1, 2, 10])
def test_an_impossible_length_is_told(num_tokens: int) -> None:
    assert "expected 3..9" in str(check_row(np.zeros(9, DTYPE), num_tokens, 1, SPECIAL))


def test_an_emptied_row_holds_nothing() -> None:
    assert check_row(np.zeros(9, DTYPE), 0, 0, SPECIAL) is None
    assert check_row(np.arange(9).astype(DTYPE), 0, 0, SPECIAL) == "an emptied row holds tokens"


def test_the_token_type_holds_every_id_of_the_vocabulary() -> None:
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32
    for size in (2, 65_536, 65_537):
        assert np.array([size - 1]).astype(token_dtype(size))[0] == size - 1


def test_a_vocabulary_larger_than_the_token_type_is_refused() -> None:
    with pytest.raises(MoseError, match="do not fit the widest token type, uint32"):
        token_dtype((1 << 32) + 1)


@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), max_size=6), st.integers(0, 3))
def test_many_rows_at_once_are_those_assembled_one_by_one(rows: list[list[int]], more: int) -> None:
    tokens = np.arange(10, 500, dtype=DTYPE)
    lengths = np.array([length for row in rows for length in row], dtype=np.int64)
    starts = np.arange(len(lengths), dtype=np.int64) * 7
    length = max([packed_length(row) for row in rows], default=3) + more
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    found = assemble_rows(tokens, starts, lengths, counts, SPECIAL, length)
    snippets = iter(tokens[start : start + size] for start, size in zip(starts, lengths, strict=True))
    expected = [assemble([next(snippets) for _ in row], SPECIAL, length, DTYPE).tolist() for row in rows]
    assert found.tolist() == expected
    if rows:
        with pytest.raises(MoseError, match="at most"):
            assemble_rows(tokens, starts, lengths, counts, SPECIAL, length - more - 1)
