"""Covers the levels of counts: unigram entropy against scipy, the bigram against probabilities and a chain of known entropy."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy

from pretrain.analysis.count_baselines import count_rows, cross_entropy_of_frequencies, entropy, left_bigram_cross_entropy
from pretrain.storage.local_rows import LocalRows


@given(st.lists(st.integers(0, 50), min_size=2, max_size=40).filter(lambda counts: sum(counts) > 0))
def test_entropy_equals_scipys_and_bounds_every_other_unigram(counts: list[int]) -> None:
    counts_V = np.array(counts)
    assert entropy(counts_V) == pytest.approx(float(scipy_entropy(counts_V)), abs=1e-12)
    assert cross_entropy_of_frequencies(counts_V, counts_V[::-1].copy()) >= entropy(counts_V) - 1e-12


@given(st.lists(st.integers(0, 24), max_size=60), st.integers(0, 4))
def test_bigram_chances_of_each_left_token_sum_to_one(train: list[int], left: int) -> None:
    train_P = np.array(train, dtype=np.int64)
    chances = [np.exp(-left_bigram_cross_entropy(train_P, np.array([left * 5 + token]), 5)) for token in range(5)]
    assert sum(chances) == pytest.approx(1.0, abs=1e-9)
    assert min(chances) > 0


def test_bigram_of_a_chain_reaches_its_entropy_rate() -> None:
    generator = np.random.default_rng(0)
    size = 6
    transition = generator.dirichlet(np.ones(size), size)
    chain = [0]
    for draw in generator.random(60_000):
        chain.append(min(int(np.searchsorted(transition[chain[-1]].cumsum(), draw)), size - 1))
    tokens = np.array(chain)
    pairs = tokens[:-1] * size + tokens[1:]
    train_P, held_out_P = pairs[:50_000], pairs[50_000:]
    rate = float(-np.log(transition[held_out_P // size, held_out_P % size]).mean())
    assert left_bigram_cross_entropy(train_P, held_out_P, size) == pytest.approx(rate, abs=0.002)


def test_counts_are_those_of_real_tokens(dataset: Path) -> None:
    rows = LocalRows(dataset, "held_out")
    size = rows.table.manifest.vocabulary_size
    every_V = np.ones(size, dtype=bool)
    counts_V, pairs_P = count_rows(rows, size, len(rows), every_V)
    assert counts_V.sum() == rows.table.manifest.tokens("held_out")
    assert count_rows(rows, size, 1, every_V)[0].sum() == rows.labels(np.array([0])).num_tokens.sum()
    # Each row's first real token has nothing on its left but padding.
    first_V = counts_V - np.bincount(pairs_P % size, minlength=size)
    assert 0 <= first_V.sum() <= len(rows)
    assert set(np.unique(count_rows(rows, size, len(rows), np.arange(size) > 10)[1] % size)) <= set(range(11, size))
