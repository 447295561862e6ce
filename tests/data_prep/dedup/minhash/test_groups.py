"""Covers groups: components are those of a walk, and the kept members follow the rule."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_prep.dedup.minhash.groups import joined, kept_members, ranks_of, representatives

EDGES = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40)


def reached(edges: list[tuple[int, int]], node: int) -> set[int]:
    """The reference: every node that a walk from `node` reaches."""
    found = {node}
    while more := {b for edge in edges for a, b in (edge, edge[::-1]) if a in found} - found:
        found |= more
    return found


@given(EDGES, st.integers(0, 40))
def test_components_are_what_a_walk_reaches(edges: list[tuple[int, int]], cut: int) -> None:
    labels = np.arange(20)
    for part in (edges[:cut], edges[cut:]):
        first, second = (np.array([edge[side] for edge in part], np.int64) for side in (0, 1))
        labels = joined(labels, first, second)
    for node in range(20):
        assert labels[node] == min(reached(edges, node))


def test_a_long_chain() -> None:
    nodes = np.random.default_rng(0).permutation(5000)
    assert (joined(np.arange(5000), nodes[1:], nodes[:-1]) == 0).all()


@given(EDGES, st.integers(0, 40), st.sets(st.integers(0, 19)))
def test_every_member_has_one_kept_neighbour_that_stands_for_it(
    edges: list[tuple[int, int]], cut: int, contaminated: set[int]
) -> None:
    pairs = sorted({(max(edge), min(edge)) for edge in edges if edge[0] != edge[1]})
    # All pairs of a member are in one chunk.
    while 0 < cut < len(pairs) and pairs[cut][0] == pairs[cut - 1][0]:
        cut += 1
    chunks = [tuple(np.array([pair[side] for pair in part], np.uint64) for side in (0, 1)) for part in (pairs[:cut], pairs[cut:])]
    standing = representatives([(chunk[0], chunk[1]) for chunk in chunks], ~np.isin(np.arange(20), list(contaminated)))
    kept: list[int] = []
    for member in range(20):
        near = [other for other in kept if (member, other) in pairs]
        if member in contaminated:
            assert standing[member] == -1
        elif near:
            assert standing[member] == near[0]
        else:
            assert standing[member] == member
            kept.append(member)


def test_the_kept_member() -> None:
    groups = np.array([0, 1, 0, 1, 4, 4])
    sizes = np.array([5, 9, 7, 9, 1, 2])
    first, longest = ranks_of(sizes, "first"), ranks_of(sizes, "longest")
    assert longest.tolist() == [3, 0, 2, 1, 5, 4]
    everyone = np.ones(6, np.bool_)
    assert kept_members(groups, everyone, first).tolist() == [0, 1, 0, 1, 4, 4]
    assert kept_members(groups, everyone, longest).tolist() == [2, 1, 2, 1, 5, 5]
    some = np.array([False, False, True, True, False, False])
    assert kept_members(groups, some, first).tolist() == [-1, -1, 2, 3, -1, -1]
    assert kept_members(groups, ~everyone, longest).tolist() == [-1] * 6
