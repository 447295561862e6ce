"""Scores of a retrieval run from the rank of each query's own code, with intervals and the level of chance.

Letters: Q queries, C candidates of each query, the own code among them, G groups of queries, S seeds,
R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mose.seeding import generator

RANKS = NDArray[np.int64]
# Fewer repositories say too little about others: an interval over two of them would be three points.
MIN_GROUPS = 5


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
    group_Q = unit_groups(len(values_Q), groups, least=2)
    counts_G, sums_G = np.bincount(group_Q), np.bincount(group_Q, weights=values_Q)
    draw = generator(seed, "bootstrap", len(values_Q))
    means = []
    for _ in range(resamples):
        drawn = draw.integers(len(counts_G), size=len(counts_G))
        means.append(sums_G[drawn].sum() / counts_G[drawn].sum())
    return percentiles(float(values_Q.mean()), means)


def bootstrap_over_seeds(values_SQ: NDArray[np.float64], seed: int, groups: Sequence[str] = (), resamples: int = 2000) -> Score:
    """The mean over seeds and queries, and its percentile bootstrap interval (95 %): seeds and repositories are drawn at once.

    Seeds and queries are crossed (every seed answers every query), so both are drawn, independently. With few seeds the interval
    is too narrow: drawing from S values has (S - 1) / S of their variance. Where there are fewer than MIN_GROUPS repositories,
    queries are drawn instead.
    """
    group_Q = unit_groups(values_SQ.shape[1], groups)
    counts_G = np.bincount(group_Q)
    sums_SG = np.stack([np.bincount(group_Q, weights=values_Q) for values_Q in values_SQ])
    num_seeds, num_groups = sums_SG.shape
    draw = generator(seed, "bootstrap over seeds", *values_SQ.shape)
    # How often each seed and each group is drawn, for all resamples at once.
    seeds_RS = draw.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=resamples)
    groups_RG = draw.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=resamples)
    means_R = ((seeds_RS @ sums_SG) * groups_RG).sum(axis=1) / (num_seeds * (groups_RG @ counts_G))
    return percentiles(float(values_SQ.mean()), means_R)


def unit_groups(units: int, names: Sequence[str], least: int = MIN_GROUPS) -> NDArray[np.int64]:
    """The group [U] of each unit (query or pair): those named, since units of one are alike.

    Each unit is its own group where there are no names, or fewer than `least` different ones.
    """
    different, group_U = np.unique(np.asarray(names), return_inverse=True)
    return group_U if len(names) == units and len(different) >= least else np.arange(units)


def percentiles(value: float, draws_R: Sequence[float] | NDArray[np.float64]) -> Score:
    """A score and the 95 % percentile interval of its draws."""
    low, high = np.percentile(draws_R, [2.5, 97.5])
    return Score(value, (float(low), float(high)))
