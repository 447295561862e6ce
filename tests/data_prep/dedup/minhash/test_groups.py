"""Covers groups: both ways to find components agree, and the kept member follows the rule."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_prep.dedup.minhash.groups import UnionFind, components, kept_members

EDGES = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40)


def reached(edges: list[tuple[int, int]], node: int) -> set[int]:
    """The reference: every node that a walk from `node` reaches."""
    found = {node}
    while more := {b for edge in edges for a, b in (edge, edge[::-1]) if a in found} - found:
        found |= more
    return found


@given(EDGES)
def test_components_are_what_a_walk_reaches(edges: list[tuple[int, int]]) -> None:
    first, second = (np.array([edge[side] for edge in edges], np.int64) for side in (0, 1))
    labels = components(first, second, 20)
    grown = UnionFind()
    joins = sum(grown.union(*edge) for edge in edges)
    for node in range(20):
        assert labels[node] == min(reached(edges, node)) == grown.find(node)
    assert joins == 20 - len(set(labels.tolist()))


def test_a_long_chain() -> None:
    nodes = np.random.default_rng(0).permutation(5000)
    assert (components(nodes[1:], nodes[:-1], 5000) == 0).all()


def test_the_kept_member() -> None:
    groups = np.array([0, 1, 0, 1, 4, 4])
    sizes = np.array([5, 9, 7, 9, 1, 2])
    everyone = np.ones(6, np.bool_)
    assert kept_members(groups, everyone, sizes, "first").tolist() == [0, 1, 0, 1, 4, 4]
    assert kept_members(groups, everyone, sizes, "longest").tolist() == [2, 1, 2, 1, 5, 5]
    some = np.array([False, False, True, True, False, False])
    assert kept_members(groups, some, sizes, "first").tolist() == [2, 3, 2, 3, -1, -1]
    assert kept_members(groups, ~everyone, sizes, "longest").tolist() == [-1] * 6
