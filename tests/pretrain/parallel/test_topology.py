"""Covers which rank stands where, against torch's own device mesh arithmetic and by hypothesis properties."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pretrain.parallel.topology import place_of

DEGREES = st.tuples(st.integers(1, 64), st.sampled_from([1, 2, 4]))


def test_worked_example_of_eight_ranks() -> None:
    assert [(place.data_rank, place.tensor_rank) for place in (place_of(rank, 2) for rank in (0, 1, 6, 7))] == [
        (0, 0),
        (0, 1),
        (3, 0),
        (3, 1),
    ]


@given(DEGREES)
def test_places_are_rows_and_columns_of_the_rank_grid(degrees: tuple[int, int]) -> None:
    data_ranks, tensor_ranks = degrees
    grid = np.arange(data_ranks * tensor_ranks).reshape(data_ranks, tensor_ranks)
    for rank in range(grid.size):
        place = place_of(rank, tensor_ranks)
        assert grid[place.data_rank, place.tensor_rank] == rank == place.rank
