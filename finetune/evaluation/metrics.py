"""Scores of a retrieval run from the rank of each query's own code, with intervals and the level of chance.

Letters: Q queries, C candidates of each query, the own code among them, G groups of queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mose.seeding import generator

RANKS = NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """A mean over queries and its 95 % interval."""

    value: float
    interval: tuple[float, float]


def ranks_of(own_Q: NDArray[np.floating], distractors_QC: NDArray[np.floating]) -> RANKS:
    """Rank [Q] of the own code from similarities [Q] and [Q, C - 1], 1 is best; ties count against us, NaN is worst."""
    not_below_QC: NDArray[np.bool_] = ~(distractors_QC < own_Q[:, None])
    ranks_Q: RANKS = 1 + not_below_QC.sum(axis=1, dtype=np.int64)
    return ranks_Q


def reciprocal_ranks(ranks_Q: RANKS) -> NDArray[np.float64]:
    """1 / rank of each query; their mean is MRR."""
    return 1.0 / ranks_Q


def hits_at_1(ranks_Q: RANKS) -> NDArray[np.float64]:
    """1 where the own code ranks first; the mean is recall@1."""
    hits_Q: NDArray[np.bool_] = ranks_Q == 1
    return hits_Q.astype(np.float64)


def chance_mrr(num_candidates: int) -> float:
    """MRR of a random order: the mean of 1 / rank, H(C) / C; .0075 for 1,000 candidates."""
    return float((1.0 / np.arange(1, num_candidates + 1)).mean())


def bootstrap(values_Q: NDArray[np.float64], seed: int, groups: Sequence[str] = (), resamples: int = 2000) -> Score:
    """The mean and its percentile bootstrap interval (95 %); the same seed gives the same interval.

    `groups` names each query's repository: whole repositories are then drawn, because queries of one are alike. Without names,
    or with a single one, queries are drawn.
    """
    _, group_Q = np.unique(np.asarray(groups), return_inverse=True)
    if len(groups) != len(values_Q) or group_Q.max(initial=0) == 0:
        group_Q = np.arange(len(values_Q))
    counts_G, sums_G = np.bincount(group_Q), np.bincount(group_Q, weights=values_Q)
    draw = generator(seed, "bootstrap", len(values_Q))
    means = []
    for _ in range(resamples):
        drawn = draw.integers(len(counts_G), size=len(counts_G))
        means.append(sums_G[drawn].sum() / counts_G[drawn].sum())
    low, high = np.percentile(means, [2.5, 97.5])
    return Score(float(values_Q.mean()), (float(low), float(high)))
