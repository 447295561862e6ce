"""Prompts: the layout of the released card, truncation that keeps `<cls>`, and agreement with the tokenizers library."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from finetune.retrieval.prompts import Prompt, code_prompt, encode_prompt, encode_prompts, text_prompt
from mose.checkpoint.retrieval_prompts import TEXT_INSTRUCTION
from mose.errors import MoseError
from mose.tokenizer import Tokenizer, load_tokenizer


def test_instructions_are_those_of_the_released_card():
    assert code_prompt("x = 1", "C++") == Prompt("Represent this c++ code snippet for retrieval:", "x = 1")
    assert text_prompt("add").instruction == "Represent this code description for retrieving supporting snippets of code:"
    assert code_prompt("x", "").instruction == "Represent this code snippet for retrieval:"


def test_layout_is_sep_instruction_sep_text_cls(tokenizer: Tokenizer):
    ids = encode_prompt(tokenizer, TEXT_INSTRUCTION, "read the file", 128)
    special = tokenizer.special
    seps = [place for place, token in enumerate(ids) if token == special.sep]
    assert ids[0] == special.sep and len(seps) == 2 and ids[-1] == special.cls
    assert tokenizer.decode(ids[1 : seps[1]]) == TEXT_INSTRUCTION
    assert tokenizer.decode(ids[seps[1] + 1 : -1]) == "read the file"


def test_equals_the_prompt_written_as_one_string_in_the_tokenizers_library(tmp_path: Path):
    alphabet = {token: index for index, token in enumerate(["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    reference = tokenizers.Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.add_special_tokens(["<|endoftext|>", "<sep>", "<cls>", "<mask>"])
    reference.save(str(tmp_path / "tokenizer.json"))
    ours = encode_prompt(load_tokenizer(tmp_path), TEXT_INSTRUCTION, "naïve\n\tcode", 256)
    assert ours.tolist() == reference.encode(f"<sep>{TEXT_INSTRUCTION}<sep>naïve\n\tcode<cls>").ids


@settings(max_examples=60)
@given(text=st.text(max_size=200), max_length=st.integers(40, 120))
def test_truncation_cuts_the_text_and_never_the_cls(tokenizer: Tokenizer, text: str, max_length: int):
    whole = encode_prompt(tokenizer, "find:", text, 10_000)
    cut = encode_prompt(tokenizer, "find:", text, max_length)
    assert len(cut) == min(len(whole), max_length)
    assert cut[-1] == tokenizer.special.cls
    assert cut[:-1].tolist() == whole[: len(cut) - 1].tolist()
    assert (cut[1:-1] == tokenizer.special.cls).sum() == 0


def test_a_batch_equals_its_prompts_one_by_one(tokenizer: Tokenizer):
    prompts = [
        text_prompt("sort it"),
        code_prompt("a\n" * 90, "Go"),
        code_prompt("", "Python"),
        text_prompt("<cls> <sep>"),
    ]
    batch = encode_prompts(tokenizer, prompts, 100)
    for ids, prompt in zip(batch, prompts, strict=True):
        assert ids.tolist() == encode_prompt(tokenizer, prompt.instruction, prompt.text, 100).tolist()


def test_no_room_for_text_is_said(tokenizer: Tokenizer):
    with pytest.raises(MoseError, match="max_length: 8, expected more than the"):
        encode_prompt(tokenizer, TEXT_INSTRUCTION, "text", 8)
