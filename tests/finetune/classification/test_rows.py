"""Rows of one text or more: the frame of the paper, and truncation that takes from the longest and never the `<cls>`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.classification.rows import encode_rows, share_room
from mose.errors import MoseError
from mose.tokenizer import Tokenizer


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.integers(0, 100))
def test_room_is_used_and_no_text_is_cut_below_an_equal_share(lengths: list[int], room: int):
    kept = share_room(lengths, room)
    assert sum(kept) == min(room, sum(lengths))
    assert all(part <= length for part, length in zip(kept, lengths, strict=True))
    assert all(part >= min(length, room // len(lengths)) for part, length in zip(kept, lengths, strict=True))
    assert share_room([3, 50], 10) == [3, 7] and share_room([50, 3], 10) == [7, 3] and share_room([50, 50], 11) == [5, 6]


def test_a_pair_is_framed_as_in_the_paper(tokenizer: Tokenizer):
    special = tokenizer.special
    a, b = (tokenizer.encode(text).tolist() for text in ("read(file)", "close(table)"))
    single, pair = encode_rows(tokenizer, [["read(file)"], ["read(file)", "close(table)"]], 100)
    assert single.tolist() == [special.sep, *a, special.cls]
    assert pair.tolist() == [special.sep, *a, special.sep, *b, special.cls]


def test_long_pairs_keep_both_beginnings_and_cls(tokenizer: Tokenizer):
    special, texts = tokenizer.special, ["read(file) " * 50, "close(table) " * 80]
    first, second = (tokenizer.encode(text) for text in texts)
    (row,) = encode_rows(tokenizer, [texts], 24)
    assert row.tolist() == [special.sep, *first[:10], special.sep, *second[:11], special.cls]
    (row,) = encode_rows(tokenizer, [["f", texts[1]]], 24)
    assert len(row) == 24 and row[-1] == special.cls and (row == special.sep).sum() == 2


def test_text_that_spells_a_special_token_adds_none(tokenizer: Tokenizer):
    (row,) = encode_rows(tokenizer, [["a<sep>b<cls>", "c"]], 100)
    assert (row == tokenizer.special.sep).sum() == 2 and (row == tokenizer.special.cls).sum() == 1


def test_no_room_is_refused(tokenizer: Tokenizer):
    assert len(encode_rows(tokenizer, [["read(file)", "close(table)"]], 5)[0]) == 5
    with pytest.raises(MoseError, match="max_length: 4, expected 5 or more for 2 texts"):
        encode_rows(tokenizer, [["read(file)", "close(table)"]], 4)
