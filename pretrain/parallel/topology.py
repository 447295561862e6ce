"""The grid of data and tensor ranks: pure arithmetic; the tensor-parallel ranks of one group are neighbours.

With 8 ranks and tensor_ranks = 2:

    rank           0  1  2  3  4  5  6  7
    data rank      0  0  1  1  2  2  3  3     ranks of one tensor group see the same rows
    tensor rank    0  1  0  1  0  1  0  1     ranks of one data group hold the same slice of every weight
    tensor groups  [0 1] [2 3] [4 5] [6 7]    inside a node, where links are fastest
    data groups    [0 2 4 6] [1 3 5 7]        ZeRO partitions the optimiser over these
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """The coordinates of one rank."""

    rank: int
    data_rank: int
    tensor_rank: int


def partition_of(data_rank: int, partition_ranks: int) -> range:
    """The neighbouring data ranks that divide one copy of the optimiser states among them; launchers number a node's in a row."""
    first = data_rank - data_rank % partition_ranks
    return range(first, first + partition_ranks)


def place_of(rank: int, tensor_ranks: int) -> Place:
    """The coordinates of `rank`; megatron-core builds its groups in the same order (a test asserts it)."""
    return Place(rank, rank // tensor_ranks, rank % tensor_ranks)
