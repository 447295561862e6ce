"""Covers the fast tokenizer made from a sentencepiece model: the same ids on any text, specials, padding side, truncation."""

import hypothesis.strategies as st
import pytest
import sentencepiece
from hypothesis import given
from transformers import AutoTokenizer

from mose.checkpoint.fast_tokenizer import SAMPLE, convert, write_fast_tokenizer
from mose.errors import MoseError
from mose.tokenizer import SENTENCEPIECE_SPECIALS
from tests.datasets import make_tokenizer, tokenizer_bytes

PROCESSOR = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_bytes(420))
FAST = convert(PROCESSOR)


@given(st.text(max_size=200).filter(lambda text: not any(piece in text for piece in SENTENCEPIECE_SPECIALS.values())))
def test_any_text_has_the_same_ids(text: str) -> None:
    assert FAST.encode(text, add_special_tokens=False).ids == PROCESSOR.EncodeAsIds(text)


@given(st.text(alphabet="abcdefgh_()=:. \n\t", max_size=300))
def test_text_of_the_vocabularys_own_letters_has_the_same_ids(text: str) -> None:
    encoded = FAST.encode(text, add_special_tokens=False).ids
    assert encoded == PROCESSOR.EncodeAsIds(text)
    assert FAST.decode(encoded, skip_special_tokens=False) == text


def test_auto_tokenizer_frames_pads_and_truncates(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("fast")
    ours = make_tokenizer(folder, 420)
    assert write_fast_tokenizer(folder, max_length=16)
    theirs = AutoTokenizer.from_pretrained(folder)
    rows = theirs(["abc def", "a"], padding=True)["input_ids"]
    special = ours.special
    assert rows[0] == [special.sep, *ours.encode("abc def"), special.cls]
    assert rows[1] == [special.pad] * (len(rows[0]) - 3) + [special.sep, *ours.encode("a"), special.cls]
    cut = theirs(SAMPLE[0] * 9, truncation=True)["input_ids"]
    assert len(cut) == 16
    assert (cut[0], cut[-1]) == (special.sep, special.cls)
    assert [theirs.pad_token_id, theirs.unk_token_id, theirs.mask_token_id] == [special.pad, special.unk, special.mask]


def test_folder_without_a_model_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(MoseError, match=r"tokenizer\.model: no such file"):
        write_fast_tokenizer(tmp_path_factory.mktemp("none"), 16)
