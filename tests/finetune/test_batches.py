"""Batches: the order of pairs is a pure function without repeats, and packed rows are the rows themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.batches import BatchOrder, balanced_shares, chunks_by_length, pack_rows
from mose.errors import MoseError


@given(
    pairs=st.integers(2, 60), second=st.integers(0, 60), batch=st.integers(2, 20), step=st.integers(0, 50), seed=st.integers(0, 5)
)
def test_a_batch_is_pure_full_and_never_repeats_a_pair(pairs: int, second: int, batch: int, step: int, seed: int):
    has_second = [index < second for index in range(pairs)]
    enough = pairs >= batch and (second == 0 or min(second, pairs) >= batch // 2)
    if not enough:
        with pytest.raises(MoseError, match="batch_pairs"):
            BatchOrder(has_second, batch, seed)
        return
    order = BatchOrder(has_second, batch, seed)
    items = order.at(step)
    both = [*items.text_code.tolist(), *items.code_code.tolist()]
    assert len(both) == len(set(both)) == batch
    assert len(items.code_code) == (batch // 2 if second else 0)
    assert all(has_second[index] for index in items.code_code)
    order.at(0)
    again = order.at(step)
    fresh = BatchOrder(has_second, batch, seed).at(step)
    for other in (again, fresh):
        assert other.text_code.tolist() == items.text_code.tolist() and other.code_code.tolist() == items.code_code.tolist()


def test_an_epoch_visits_every_pair_once_and_the_next_in_another_order():
    order = BatchOrder([False] * 24, 6, seed=1)
    epochs = [[index for step in range(start, start + 4) for index in order.at(step).text_code] for start in (0, 4)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
    assert epochs[0] != epochs[1]


def test_triplets_take_both_parts_over_epochs():
    order = BatchOrder([True] * 20, 10, seed=1)
    asked = [order.at(step) for step in range(40)]
    assert {index for items in asked for index in items.text_code} == set(range(20))
    assert {index for items in asked for index in items.code_code} == set(range(20))


@given(lengths=st.lists(st.integers(1, 50), max_size=60), max_rows=st.integers(1, 9), max_tokens=st.integers(1, 200))
def test_chunks_hold_every_row_once_within_bounds_and_ascending(lengths: list[int], max_rows: int, max_tokens: int):
    chunks = chunks_by_length(lengths, max_rows, max_tokens)
    flat = [row for chunk in chunks for row in chunk.tolist()]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[row] for row in flat] == sorted(lengths)
    for chunk in chunks:
        assert 1 <= len(chunk) <= max_rows
        assert len(chunk) == 1 or sum(lengths[row] for row in chunk) <= max_tokens


@given(ranks=st.integers(1, 9), costs=st.lists(st.integers(0, 2048), max_size=90), seed=st.integers(0, 3))
def test_shares_have_every_row_once_equal_numbers_and_alike_costs(ranks: int, costs: list[int], seed: int):
    costs_R = np.array(costs[: len(costs) // ranks * ranks], dtype=np.int64)
    shares = balanced_shares(costs_R, ranks)
    assert sorted(row for rows in shares for row in rows.tolist()) == list(range(len(costs_R)))
    assert {len(rows) for rows in shares} == {len(costs_R) // ranks}
    assert all(rows.tolist() == sorted(rows.tolist()) for rows in shares)
    totals = [int(costs_R[rows].sum()) for rows in shares]
    spread = int(costs_R.max() - costs_R.min()) if len(costs_R) else 0
    assert max(totals) - min(totals) <= spread


def test_one_rank_keeps_the_order_of_the_rows():
    assert balanced_shares(np.array([3, 9, 1, 9]), 1)[0].tolist() == [0, 1, 2, 3]


def test_packed_rows_are_cut_apart_again_by_their_bounds():
    rows = [np.array(ids, dtype=np.uint16) for ids in ([5, 6, 7], [8], [9, 10])]
    batch = pack_rows(rows)
    bounds = batch.cu_seqlens.tolist()
    assert batch.cu_seqlens.dtype.itemsize == 4 and bounds == [0, 3, 4, 6] and batch.max_length == 3
    for row, start, end in zip(rows, bounds, bounds[1:], strict=False):
        assert batch.input_ids_N[start:end].tolist() == row.tolist()
        assert batch.positions_N[start:end].tolist() == list(range(len(row)))
