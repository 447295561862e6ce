"""The order of rows: a bijection of each epoch at any size, random enough, constant in cost, and over epochs."""

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.order import rows_at, rows_of_run, rows_of_run_at


@settings(max_examples=200)
@given(
    num_rows=st.integers(1, 5000),
    block_rows=st.integers(1, 100),
    window_rows=st.integers(1, 6000),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_holds_every_row_once(num_rows: int, block_rows: int, window_rows: int, seed: int, epoch: int) -> None:
    rows = rows_at(seed, epoch, np.arange(num_rows), num_rows, block_rows, window_rows)
    assert rows.dtype == np.int64
    assert np.array_equal(np.sort(rows), np.arange(num_rows))


@given(num_rows=st.integers(1, 5000), data=st.data())
def test_one_position_alone_gives_the_same_row(num_rows: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, num_rows - 1), min_size=1, max_size=5)))
    together = rows_at(1, 2, positions, num_rows, 8, 100)
    alone = [rows_at(1, 2, positions[[place]], num_rows, 8, 100) for place in range(len(positions))]
    assert np.concatenate(alone).tolist() == together.tolist()


def test_seeds_and_epochs_differ() -> None:
    orders = {rows_at(seed, epoch, np.arange(1000), 1000).tobytes() for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_asked_positions_are_not_changed() -> None:
    positions = np.arange(100)
    rows_at(0, 0, positions, 100, 8, 30)
    assert np.array_equal(positions, np.arange(100))


def test_neighbours_of_a_block_are_spread_over_the_window_and_no_further() -> None:
    num_rows, block_rows, window_rows = 4096, 32, 512
    rows = rows_at(5, 0, np.arange(num_rows), num_rows, block_rows, window_rows)
    blocks_of_window = [np.unique(rows[start : start + window_rows] // block_rows) for start in range(0, num_rows, window_rows)]
    assert all(len(blocks) == window_rows // block_rows for blocks in blocks_of_window), "a window reads whole blocks"
    spans = [blocks.max() - blocks.min() for blocks in blocks_of_window]
    assert min(spans) > 64, "the blocks of a window come from all over the split"
    steps = np.diff(rows)
    assert (steps == 1).mean() < 0.02, "neighbours on disk are not neighbours in the order"


def test_the_order_looks_random() -> None:
    num_rows, epochs = 64, 1500
    places = np.stack([rows_at(9, epoch, np.arange(num_rows), num_rows, 1, num_rows) for epoch in range(epochs)])
    expected = epochs / num_rows
    counts = np.stack([np.bincount(places[:, position], minlength=num_rows) for position in range(num_rows)])
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    # Each row of counts has 63 degrees of freedom, and so has each column: 63 x 63 in all.
    freedom = (num_rows - 1) ** 2
    assert abs(chi_squared - freedom) < 6 * np.sqrt(2 * freedom)
    follows = (np.diff(places, axis=1) == 1).mean()
    assert abs(follows - 1 / num_rows) < 0.003


def test_the_short_last_block_keeps_its_place_at_the_end() -> None:
    rows = rows_at(3, 1, np.arange(1003), 1003, 32, 100)
    assert set(range(992, 1003)) <= set(rows[900:].tolist())


def test_cost_of_a_position_does_not_grow_with_the_rows() -> None:
    positions = np.arange(2048, dtype=np.int64)

    def seconds(num_rows: int) -> float:
        took = []
        for _ in range(5):
            began = time.perf_counter()
            rows_at(0, 0, positions * (num_rows // 2048), num_rows)
            took.append(time.perf_counter() - began)
        return min(took)

    assert seconds(500_000_000) < 20 * seconds(500_000)
    assert seconds(500_000_000) < 1


@given(num_rows=st.integers(1, 60), start=st.integers(0, 300), count=st.integers(1, 30))
def test_a_run_over_epochs_is_each_epoch_in_turn(num_rows: int, start: int, count: int) -> None:
    rows, epochs = rows_of_run(4, start, count, num_rows, 4, 16)
    for offset in range(count):
        epoch, position = divmod(start + offset, num_rows)
        (expected,) = rows_at(4, epoch, np.array([position]), num_rows, 4, 16)
        assert (rows[offset], epochs[offset]) == (expected, epoch)


def test_the_order_never_changes() -> None:
    """A run that resumes with newer code must go on in the same order; the size is that of a real data set."""
    rows_P, epochs_P = rows_of_run_at(7, np.array([0, 1, 123_456_789, 500_000_000, 999_999_999]), 500_000_000)
    assert epochs_P.tolist() == [0, 0, 0, 1, 1]
    assert rows_P.tolist() == [35374494, 266307998, 167288981, 351575571, 422044998]
