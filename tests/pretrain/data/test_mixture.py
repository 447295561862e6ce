"""Mixtures: exact shares at any position, each source in its own order, and numbers that only the position decides."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mose.errors import MoseError
from pretrain.data.mixture import BLOCK_POSITIONS, Mixture, mixture_at, rows_by_source
from pretrain.data.order import rows_of_run

WEIGHTS = st.lists(st.integers(1, 100), min_size=1, max_size=6).map(lambda weights: [weight / 7 for weight in weights])
SEEDS = st.integers(0, 2**40)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, weights=WEIGHTS, blocks=st.integers(1, 3), first_block=st.integers(0, 10**6))
def test_counts_stay_within_a_row_of_the_shares(seed: int, weights: list[float], blocks: int, first_block: int) -> None:
    """At the end of any block, however far the run is, no source is a row ahead of its share or behind it."""
    for consumed in (blocks * BLOCK_POSITIONS, (first_block + blocks) * BLOCK_POSITIONS):
        counts = rows_by_source(seed, consumed, weights)
        assert counts.sum() == consumed
        total = sum(map(Fraction, weights))
        for count, weight in zip(counts.tolist(), weights, strict=True):
            # Weights are kept to 30 bits, which is a hundredth of a row after 10 million rows and one after a thousand million.
            assert abs(count - consumed * Fraction(weight) / total) < 1 + Fraction(consumed, 1 << 29)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, weights=WEIGHTS, start=st.integers(0, 2**30), count=st.integers(1, 3000))
def test_each_source_goes_on_where_it_was_at_any_position(seed: int, weights: list[float], start: int, count: int) -> None:
    """A run resumed at any position: each source's own positions continue without a gap or a repetition."""
    sources, positions = mixture_at(seed, np.arange(start, start + count), weights)
    before, after = rows_by_source(seed, start, weights), rows_by_source(seed, start + count, weights)
    for source, (first, end) in enumerate(zip(before.tolist(), after.tolist(), strict=True)):
        assert positions[sources == source].tolist() == list(range(first, end))


@given(seed=SEEDS, weights=WEIGHTS, positions=st.lists(st.integers(0, 10**7), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_a_position_does_not_depend_on_what_else_is_asked(seed: int, weights: list[float], positions: list[int]) -> None:
    together = mixture_at(seed, np.array(positions), weights)
    alone = [mixture_at(seed, np.array([position]), weights) for position in positions]
    for part in range(2):
        assert together[part].tolist() == [int(one[part][0]) for one in alone]


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, sizes=st.lists(st.integers(60, 300), min_size=1, max_size=4), data=st.data())
def test_a_source_has_every_row_once_in_each_of_its_epochs(seed: int, sizes: list[int], data: st.DataObject) -> None:
    weights = tuple(data.draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes))))
    mixture = Mixture(tuple(map(str, range(len(sizes)))), tuple(sizes), tuple(map(float, weights)))
    rows, epochs = mixture.rows_of_run(seed, 0, 3000, 4, 32)
    for first, size in zip(mixture.first_rows[:-1].tolist(), sizes, strict=True):
        of_source = (rows >= first) & (rows < first + size)
        for epoch in range(int(epochs[of_source].max(initial=0))):
            assert sorted(rows[of_source & (epochs == epoch)].tolist()) == list(range(first, first + size))


def test_one_source_alone_is_the_plain_order() -> None:
    rows, epochs = Mixture.of_one(100).rows_of_run(3, 70, 60, 8, 32)
    expected, expected_epochs = rows_of_run(3, 70, 60, 100, 8, 32)
    assert np.array_equal(rows, expected)
    assert np.array_equal(epochs, expected_epochs)
    assert rows_by_source(3, 1234, [2.5]).tolist() == [1234]


def test_sources_are_mixed_within_a_block_and_anew_in_each() -> None:
    sources, _ = mixture_at(5, np.arange(64 * BLOCK_POSITIONS), [3.0, 1.0])
    by_block = sources.reshape(64, BLOCK_POSITIONS)
    assert len({block.tobytes() for block in by_block}) == 64
    # Of 16 neighbours 4 are of the second source, give or take 1.7: never none of 100 in a row, nor all of 16.
    in_sixteens = by_block.reshape(-1, 16).sum(axis=1)
    assert abs(in_sixteens.mean() - 4) < 1e-9
    assert 2.0 < in_sixteens.var() < 4.0


def test_scalars_name_rows_and_passes_of_each_source() -> None:
    mixture = Mixture(("code", "text"), (1000, 100), (3.0, 1.0))
    assert mixture.scalars(0, 4096) == {
        "data/rows/code": 3072,
        "data/epoch/code": 3.072,
        "data/rows/text": 1024,
        "data/epoch/text": 10.24,
    }


def test_too_small_a_share_and_an_empty_source_are_refused_by_name() -> None:
    with pytest.raises(MoseError, match=r"data\.mixture: tiny: weight 0\.0001, expected at least 0\.001 of the sum of weights"):
        Mixture(("big", "tiny"), (10, 10), (1.0, 0.0001))
    with pytest.raises(MoseError, match=r"data\.mixture: empty: holds no rows"):
        Mixture(("big", "empty"), (10, 0), (1.0, 1.0))
