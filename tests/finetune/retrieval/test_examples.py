"""Examples of a batch: half and half, augmented on the code side only, equal texts recognised, a pure function of the step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from finetune.retrieval.examples import Examples, text_key
from finetune.retrieval.loss import false_negatives
from mose.checkpoint.retrieval_prompts import NO_LANGUAGE_INSTRUCTION, TEXT_INSTRUCTION
from mose.dataset.pairs import Pair
from tests.finetune.conftest import make_pairs


def test_half_text_code_half_code_code_and_language_of_each_side():
    examples = Examples(make_pairs(40, second=True), 16, augment_share=0.0, seed=1).at(3)
    texts = [example for example in examples if example.query.instruction == TEXT_INSTRUCTION]
    assert len(examples) == 16 and len(texts) == 8
    assert {example.target.instruction for example in texts} == {
        "Represent this python code snippet for retrieval:",
        "Represent this javascript code snippet for retrieval:",
    }
    for example in examples[8:]:
        assert "python" in example.query.instruction and "javascript" in example.target.instruction


def test_augmentation_leaves_texts_and_keys_alone():
    pairs = make_pairs(40, second=True)
    plain = Examples(pairs, 16, augment_share=0.0, seed=1).at(5)
    changed = Examples(pairs, 16, augment_share=1.0, seed=1).at(5)
    for before, after in zip(plain, changed, strict=True):
        assert (before.query_key, before.target_key) == (after.query_key, after.target_key)
        assert before.query == after.query or before.query.instruction != TEXT_INSTRUCTION
    assert any(before.target != after.target for before, after in zip(plain, changed, strict=True))


def test_a_share_of_codes_has_the_instruction_without_a_language():
    pairs = make_pairs(400, second=True)
    for share in (0.0, 0.1, 1.0):
        batches = [Examples(pairs, 200, 0.3, 1, share).at(step) for step in range(5)]
        codes = [side.instruction for batch in batches for one in batch for side in (one.query, one.target)]
        codes = [instruction for instruction in codes if instruction != TEXT_INSTRUCTION]
        generic = sum(instruction == NO_LANGUAGE_INSTRUCTION for instruction in codes) / len(codes)
        assert abs(generic - share) < 0.03, share


def test_a_step_is_a_pure_function_and_steps_differ():
    pairs = make_pairs(40)
    examples = Examples(pairs, 8, 0.5, seed=2)
    assert examples.at(1) == Examples(pairs, 8, 0.5, seed=2).at(1)
    assert examples.at(1) != examples.at(2) and examples.at(1) != Examples(pairs, 8, 0.5, seed=3).at(1)


def test_no_two_examples_of_one_description_are_negatives():
    """As in sets of programming exercises: many codes per description, in text-code and in code-code examples."""
    pairs = [replace(pair, nl=f"exercise {number % 5}") for number, pair in enumerate(make_pairs(40, second=True))]
    batch = Examples(pairs, 16, 0.3, seed=1).at(0)
    keys = torch.tensor([(one.query_key, one.target_key, one.description_key) for one in batch]).unbind(dim=1)
    descriptions = {code: pair.nl for pair in pairs for code in (text_key(pair.code_a), text_key(pair.code_b))}
    names = [descriptions[one.target_key] for one in batch]
    expected = [[i != j and names[i] == names[j] for j in range(16)] for i in range(16)]
    assert false_negatives(*keys).tolist() == expected and any(map(any, expected))


@pytest.mark.parametrize("seed", range(10))
def test_no_two_examples_that_share_a_text_are_negatives_and_all_others_are(seed: int):
    """Few texts, so that queries, targets and descriptions of a batch meet in every way; a code may equal a description."""
    draw = np.random.default_rng(seed)
    texts = [f"text {number}" for number in range(60)]
    pairs = [Pair(*draw.choice(texts, 2).tolist(), "C", str(draw.choice(texts)), "Go") for _ in range(40)]
    batch = Examples(pairs, 24, augment_share=0.0, seed=seed).at(0)
    seen = [{one.query.text, one.target.text} for one in batch]
    # The description of a code-code example is in no row, and yet both codes answer it.
    described = [one.description_key for one in batch]
    expected = [[i != j and bool(seen[i] & seen[j] or described[i] == described[j]) for j in range(24)] for i in range(24)]
    keys = torch.tensor([(one.query_key, one.target_key, one.description_key) for one in batch]).unbind(dim=1)
    assert false_negatives(*keys).tolist() == expected
    assert 20 < sum(map(sum, expected)) < 400


def test_equal_texts_have_equal_keys_and_others_do_not():
    pair = make_pairs(1)[0]
    examples = Examples([pair, replace(pair, code_a="other")], 2, 0.0, seed=0).at(0)
    assert examples[0].query_key == examples[1].query_key == text_key(pair.nl)
    assert examples[0].target_key != examples[1].target_key
    assert -(2**63) <= text_key("") < 2**63
