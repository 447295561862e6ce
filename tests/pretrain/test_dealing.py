"""Dealing: every row once, balanced within the promised bound, better than in order, and the same every time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pretrain.dealing import deal


@st.composite
def batches(draw: st.DrawFn) -> tuple[NDArray[np.int64], int, int]:
    ranks, micro_batches, rows = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    count = ranks * micro_batches * rows
    return np.array(draw(st.lists(st.integers(0, 2048), min_size=count, max_size=count)), dtype=np.int64), ranks, rows


@given(batches())
def test_every_row_is_dealt_once(batch: tuple[NDArray[np.int64], int, int]) -> None:
    num_tokens, ranks, rows = batch
    dealt = deal(num_tokens, ranks, rows)
    assert dealt.shape == (ranks, len(num_tokens) // (ranks * rows), rows)
    assert np.array_equal(np.sort(dealt.reshape(-1)), np.arange(len(num_tokens)))


@given(batches())
def test_sums_differ_by_no_more_than_neighbours_in_length_do(batch: tuple[NDArray[np.int64], int, int]) -> None:
    num_tokens, ranks, rows = batch
    dealt = num_tokens[deal(num_tokens, ranks, rows)]
    assert np.ptp(dealt.sum(axis=(1, 2))) <= widest_round(num_tokens, ranks)
    for of_rank in dealt:
        assert np.ptp(of_rank.sum(axis=1)) <= widest_round(of_rank.reshape(-1), len(of_rank))


def widest_round(num_tokens: NDArray[np.int64], bins: int) -> int:
    """Sort by length and cut into rounds of one row a bin: the largest difference inside a round."""
    return int(np.ptp(np.sort(num_tokens).reshape(-1, bins), axis=1).max())


@given(batches())
def test_asked_twice_it_deals_alike_and_leaves_the_lengths_alone(batch: tuple[NDArray[np.int64], int, int]) -> None:
    num_tokens, ranks, rows = batch
    before = num_tokens.copy()
    assert np.array_equal(deal(num_tokens, ranks, rows), deal(num_tokens, ranks, rows))
    assert np.array_equal(num_tokens, before)


def test_the_slowest_rank_is_far_closer_to_the_mean_than_in_order() -> None:
    rng = np.random.default_rng(0)
    worst: dict[str, list[float]] = {"dealt": [], "in order": []}
    for _ in range(200):
        num_tokens = np.minimum(2048, rng.gamma(4, 500, size=256)).astype(np.int64)
        for name, order in (("dealt", deal(num_tokens, 8, 4)), ("in order", np.arange(256).reshape(8, 8, 4))):
            sums = num_tokens[order].sum(axis=(1, 2))
            worst[name].append(sums.max() / sums.mean())
    assert np.mean(worst["dealt"]) - 1 < 0.05 * (np.mean(worst["in order"]) - 1)


def test_micro_batches_of_one_row_and_one_rank() -> None:
    dealt = deal(np.array([5, 9, 1, 7]), 1, 1)
    assert dealt.shape == (1, 4, 1)
    assert sorted(dealt[0, :, 0].tolist()) == [0, 1, 2, 3]
