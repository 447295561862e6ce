"""Verified pairs to groups, and which member of a group is kept.

A group is a connected component: its members are linked by chains of near-duplicates, so that two of them may be less similar
than the threshold.
"""

from typing import Literal

import numpy as np

from mose.array_types import INT64_ARRAY

Keep = Literal["first", "longest"]


class UnionFind:
    """Components of a graph that grows edge by edge; only nodes with an edge take memory (about 200 bytes)."""

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}

    def find(self, node: int) -> int:
        """The representative of a node's component: its least node."""
        parents = self._parents
        while (parent := parents.get(node, node)) != node:
            # Path halving: every other node on the way is moved to its grandparent.
            parents[node] = node = parents.get(parent, parent)
        return node

    def union(self, first: int, second: int) -> bool:
        """Join two components; False if they are one already."""
        low, high = sorted((self.find(first), self.find(second)))
        if low == high:
            return False
        self._parents[high] = low
        return True


def components(first_E: INT64_ARRAY, second_E: INT64_ARRAY, num_nodes: int) -> INT64_ARRAY:
    """The least node of each node's component, for all edges at once: memory is 16 bytes per node."""
    labels = np.arange(num_nodes)
    while True:
        first, second = labels[first_E], labels[second_E]
        before = labels.copy()
        np.minimum.at(labels, np.maximum(first, second), np.minimum(first, second))
        # Pointer jumping halves the depth of every tree until each node points at its root.
        while not np.array_equal(labels, jumped := labels[labels]):
            labels = jumped
        if np.array_equal(labels, before):
            return labels


def kept_members(groups: INT64_ARRAY, may_be_kept: np.typing.NDArray[np.bool_], sizes: INT64_ARRAY, keep: Keep) -> INT64_ARRAY:
    """The index of the member that is kept of each member's group, -1 where none may be.

    `groups` holds each member's group; members stand in the order of the input. `first` keeps the first of a group, `longest` the
    one of the largest size, of equal ones the first.
    """
    members = np.flatnonzero(may_be_kept)
    ranks = -sizes[members] if keep == "longest" else np.zeros(len(members), np.int64)
    order = members[np.lexsort((members, ranks, groups[members]))]
    found, firsts = np.unique(groups[order], return_index=True)
    places = np.minimum(np.searchsorted(found, groups), max(len(found) - 1, 0))
    if not len(found):
        return np.full(len(groups), -1)
    return np.where(found[places] == groups, order[firsts][places], -1)
