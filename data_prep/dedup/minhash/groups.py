"""Verified pairs to groups, and which members of a group are kept.

A group is a connected component: its members are linked by chains of near-duplicates, so that two of them may be far less similar
than the threshold. To keep one row per group therefore removes rows that are near-duplicates of no kept row. `representatives`
does not: it keeps the best row, removes the near-duplicates of that one, keeps the best row that is left, and so on. Then every
removed row is a near-duplicate of a kept one, and no two kept rows are near-duplicates: a greedy maximal independent set.

Letters: E pairs, M members, R members by rank (0 is the one to keep first).
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mose.array_types import INT64_ARRAY
from mose.seeding import UINT64_ARRAY

Keep = Literal["first", "longest"]


def ranks_of(sizes_M: INT64_ARRAY, keep: Keep) -> INT64_ARRAY:
    """The rank [M] of each member: `first` keeps the first of the input, `longest` the largest, of equal ones the first."""
    if keep == "first":
        return np.arange(len(sizes_M))
    ranks = np.empty(len(sizes_M), np.int64)
    ranks[np.argsort(-sizes_M, kind="stable")] = np.arange(len(sizes_M))
    return ranks


def joined(labels_M: INT64_ARRAY, first_E: INT64_ARRAY, second_E: INT64_ARRAY) -> INT64_ARRAY:
    """The least member of each member's component, after further pairs join components that `labels_M` describes.

    Pairs may come in any number of parts; a start with `np.arange` knows none. Takes 32 bytes per member.
    """
    labels = labels_M.copy()
    while True:
        first, second = labels[first_E], labels[second_E]
        before = labels.copy()
        np.minimum.at(labels, np.maximum(first, second), np.minimum(first, second))
        # Pointer jumping halves the depth of every tree until each node points at its root.
        while not np.array_equal(labels, jumped := labels[labels]):
            labels = jumped
        if np.array_equal(labels, before):
            return labels


def representatives(chunks: Iterable[tuple[UINT64_ARRAY, UINT64_ARRAY]], may_be_kept_R: NDArray[np.bool_]) -> INT64_ARRAY:
    """The rank of the kept near-duplicate that stands for each member, its own if it is kept, -1 for those that may not be.

    `chunks` hold pairs of a later and an earlier rank, ascending from one chunk to the next: when the pairs of a member are seen,
    it is decided which of the members before it are kept.
    """
    standing = np.where(may_be_kept_R, np.arange(len(may_be_kept_R)), -1)
    # Of Python's and numpy's arrays, a bytearray is the fastest to index one by one, and takes a byte per member.
    is_kept = bytearray(may_be_kept_R.tobytes())
    for later_E, earlier_E in chunks:
        removed, kept = [], []
        for later, earlier in zip(later_E.tolist(), earlier_E.tolist(), strict=True):
            if is_kept[later] and is_kept[earlier]:
                is_kept[later] = 0
                removed.append(later)
                kept.append(earlier)
        standing[removed] = kept
    return standing


def kept_members(groups_M: INT64_ARRAY, may_be_kept_M: NDArray[np.bool_], ranks_M: INT64_ARRAY) -> INT64_ARRAY:
    """The member [M] of least rank of each member's group, -1 for those that may not be kept."""
    members = np.flatnonzero(may_be_kept_M)
    order = members[np.lexsort((ranks_M[members], groups_M[members]))]
    found, firsts = np.unique(groups_M[order], return_index=True)
    kept = np.full(len(groups_M), -1)
    kept[members] = order[firsts][np.searchsorted(found, groups_M[members])]
    return kept
