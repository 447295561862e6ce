"""Load balancing: every row once, ranks even within the promised bound, micro-batches within their budget, deterministic."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mose.array_types import INT64_ARRAY
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.model_config import ModelConfig
from mose.model.size import flops_per_row, head_flops
from pretrain.data import balancing
from pretrain.data.balancing import balance_ranks, fill_micro_batches, micro_batches_of_rank
from pretrain.data.row_cost import RowCost

SHAPE = ModularStarEncoderConfig(**ModelConfig().hugging_face())
COST = RowCost.of_model(SHAPE, 0.15)
LENGTHS = st.lists(st.integers(0, 2048), min_size=1, max_size=120).map(lambda lengths: np.array(lengths, dtype=np.int64))
RANKS = st.integers(1, 9)
BUDGETS = st.integers(1, 9000)


@given(LENGTHS, RANKS, BUDGETS, st.booleans())
def test_every_row_is_in_exactly_one_micro_batch(num_tokens: INT64_ARRAY, ranks: int, budget: int, equal: bool) -> None:
    shares = [micro_batches_of_rank(num_tokens, COST.of(num_tokens), rank, ranks, budget, equal) for rank in range(ranks)]
    assigned = [int(row) for share in shares for rows in share for row in rows]
    assert sorted(assigned) == list(range(len(num_tokens)))
    assert all(len(share) >= 1 for share in shares)


@given(LENGTHS, RANKS)
def test_ranks_differ_by_no_more_than_one_row(num_tokens: INT64_ARRAY, ranks: int) -> None:
    costs = COST.of(num_tokens)
    totals = np.array([costs[rows].sum() for rows in balance_ranks(costs, ranks)])
    assert np.ptp(totals) <= costs.max()
    assert totals.max() * ranks <= costs.sum() + (ranks - 1) * costs.max()


@given(st.lists(st.integers(0, 50), min_size=1, max_size=7), st.integers(1, 3))
def test_heaviest_rank_is_within_a_third_of_the_best_assignment(costs: list[int], ranks: int) -> None:
    """Graham's bound of longest-processing-time-first, 4/3 - 1/(3 ranks), against every assignment there is."""
    every = itertools.product(range(ranks), repeat=len(costs))
    best = min(max(sum(c for c, r in zip(costs, way, strict=True) if r == rank) for rank in range(ranks)) for way in every)
    array = np.array(costs, dtype=np.int64)
    assert max(array[rows].sum() for rows in balance_ranks(array, ranks)) <= best * (4 / 3 - 1 / (3 * ranks)) + 1e-9


@given(LENGTHS, BUDGETS, st.integers(1, 40))
def test_budget_is_kept_unless_one_row_alone_exceeds_it(num_tokens: INT64_ARRAY, budget: int, at_least: int) -> None:
    packed = fill_micro_batches(num_tokens, budget, at_least)
    assert sorted(int(row) for rows in packed for row in rows) == list(range(len(num_tokens)))
    assert all(num_tokens[rows].sum() <= budget or len(rows) == 1 for rows in packed)
    assert len(packed) >= at_least


@given(LENGTHS, BUDGETS)
def test_two_micro_batches_would_not_fit_into_one(num_tokens: INT64_ARRAY, budget: int) -> None:
    """So there are fewer than twice as many as the tokens need, wherever rows fit the budget at all."""
    count = len(fill_micro_batches(num_tokens, budget))
    assert count <= max(1, 2 * num_tokens.sum() / budget + 1)
    assert count >= num_tokens.sum() / budget or (num_tokens > budget).any()


@given(LENGTHS, RANKS, BUDGETS)
def test_equal_numbers_are_those_of_the_rank_that_needs_most(num_tokens: INT64_ARRAY, ranks: int, budget: int) -> None:
    needed, equal = (
        [len(micro_batches_of_rank(num_tokens, num_tokens, rank, ranks, budget, same)) for rank in range(ranks)]
        for same in (False, True)
    )
    assert equal == [max(needed)] * ranks


@given(LENGTHS, RANKS, BUDGETS, st.booleans())
def test_same_input_gives_the_same_assignment_and_leaves_the_lengths_alone(
    num_tokens: INT64_ARRAY, ranks: int, budget: int, equal: bool
) -> None:
    before = num_tokens.copy()
    first, second = (micro_batches_of_rank(num_tokens, num_tokens, ranks - 1, ranks, budget, equal) for _ in range(2))
    assert [rows.tolist() for rows in first] == [rows.tolist() for rows in second]
    assert np.array_equal(num_tokens, before)


@pytest.mark.parametrize(("ranks", "rows", "share_left"), [(512, 4, 0.1), (64, 32, 0.001)])
def test_slowest_rank_is_far_closer_to_the_mean_than_in_order(ranks: int, rows: int, share_left: float) -> None:
    rng = np.random.default_rng(0)
    worst: dict[str, list[float]] = {"balanced": [], "in order": []}
    for _ in range(5):
        costs = COST.of(np.minimum(2048, rng.gamma(4, 500, size=ranks * rows)).astype(np.int64))
        in_order = list(np.arange(ranks * rows).reshape(ranks, rows))
        for name, order in (("balanced", balance_ranks(costs, ranks)), ("in order", in_order)):
            totals = [costs[some].sum() for some in order]
            worst[name].append(max(totals) / np.mean(totals))
    assert np.mean(worst["balanced"]) - 1 < share_left * (np.mean(worst["in order"]) - 1)


def test_short_rows_make_fewer_micro_batches() -> None:
    assert [len(rows) for rows in fill_micro_batches(np.full(32, 2048), 8192)] == [4] * 8
    assert [len(rows) for rows in fill_micro_batches(np.full(32, 1024), 8192)] == [8] * 4
    assert [len(rows) for rows in fill_micro_batches(np.full(32, 1400), 8192)] == [5, 5, 5, 5, 4, 4, 4]


def test_rank_without_rows_has_an_empty_micro_batch() -> None:
    assert [len(rows) for rows in micro_batches_of_rank(np.array([7]), np.array([7]), 1, 2, 100, False)] == [0]


def test_cost_is_the_operations_of_the_forward_pass() -> None:
    assert RowCost().of(np.array([3, 5])).tolist() == [3, 5]
    lengths = np.array([20, 2000])
    expected = [flops_per_row(SHAPE, 36, n) + head_flops(SHAPE, round(0.15 * n), 0) for n in lengths.tolist()]
    assert np.allclose(COST.of(lengths), expected, rtol=1e-9)


def test_many_rows_are_balanced_without_swaps() -> None:
    """Above the limit of swaps: every row once, in ascending order, two ranks a row's cost apart at most."""
    costs_G = np.random.default_rng(3).integers(1, 100, size=2 * balancing._MOST_ROWS_SWAPPED + 10)
    by_rank = balance_ranks(costs_G, 2)
    assert sorted(np.concatenate(by_rank).tolist()) == list(range(len(costs_G)))
    assert all((np.diff(rows) > 0).all() for rows in by_rank)
    assert abs(int(costs_G[by_rank[0]].sum()) - int(costs_G[by_rank[1]].sum())) <= costs_G.max()
