"""Augmentation: exactly the frequent words change, consistently, in the asked share of snippets."""

import collections
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetune.retrieval.augmentation import augment, frequent_words, replace_frequent_words
from mose.seeding import generator

CODE = "def total(values):\n    total = 0\n    for x in values:\n        total += x * x\n    return total, len(values)\n"


def test_more_than_twice_and_three_characters():
    assert frequent_words(CODE) == ["total", "values"]
    assert frequent_words("ab ab ab abc abc abcd abcd abcd") == ["abcd"]


def test_only_frequent_words_change_each_into_one_string_of_its_length():
    changed = replace_frequent_words(CODE, generator(1, "test"))
    before, after = re.findall(r"\w+", CODE), re.findall(r"\w+", changed)
    assert re.sub(r"\w+", "w", changed) == re.sub(r"\w+", "w", CODE)
    mapping = collections.defaultdict(set)
    for old, new in zip(before, after, strict=True):
        mapping[old].add(new)
    assert all(len(new) == 1 for new in mapping.values())
    assert {old for old, new in mapping.items() if new != {old}} == {"total", "values"}
    assert len(mapping["total"].pop()) == len("total")


@given(st.text(alphabet="ab_ é(\n", max_size=300), st.integers(0, 3))
def test_the_structure_of_repetition_is_kept(code: str, seed: int):
    changed = replace_frequent_words(code, generator(seed, "test"))
    old, new = re.findall(r"\w+", code), re.findall(r"\w+", changed)
    assert len(old) == len(new)
    assert sorted(collections.Counter(old).values()) == sorted(collections.Counter(new).values())
    assert changed == replace_frequent_words(code, generator(seed, "test"))


def test_share_is_the_share_of_snippets():
    draws = [augment(CODE, 0.3, generator(7, "item", number)) != CODE for number in range(2000)]
    assert 0.27 < np.mean(draws) < 0.33
    assert augment(CODE, 0.0, generator(7)) == CODE != augment(CODE, 1.0, generator(7))
