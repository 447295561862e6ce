"""Intervals of scores, and tests between the exits of one model on the same units.

Letters: M models or exits, U units (queries or pairs), G groups of units, R resamples, P permutations.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.metrics import Score, percentiles
from finetune.evaluation.tasks.parts.problem import Values
from mose.seeding import generator

FLOATS = NDArray[np.float64]
# Rows of a matrix of draws that are in memory at once.
_ROWS_AT_ONCE = 500


@dataclass(frozen=True)
class Difference:
    """Two exits on the same units: the first's score minus the second's, its interval, and the permutation test's p."""

    difference: Score
    p: float


@dataclass(frozen=True)
class SimilarityTest:
    """Similarities of two exits on queries that both answer: paired t, its p by permutation, and the number of queries."""

    t: float
    p: float
    queries: int


def grouped(values: Sequence[Values], group_U: NDArray[np.int64]) -> tuple[FLOATS, FLOATS]:
    """Numerators and denominators [G, M] of several measures or exits, summed over each group."""
    sums = [
        np.stack([np.bincount(group_U, weights=column).astype(np.float64) for column in columns], axis=1)
        for columns in ([one.numerator_U for one in values], [one.denominator_U for one in values])
    ]
    return sums[0], sums[1]


def resampled(numerators_GM: FLOATS, denominators_GM: FLOATS, resamples: int, seed: int, label: str) -> FLOATS:
    """Scores [R, M] of R draws of the groups, by seed and `label`; all M see the same draws, so columns are paired."""
    groups = len(numerators_GM)
    draw = generator(seed, "bootstrap of scores", label, groups)
    blocks = []
    for start in range(0, resamples, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, resamples - start)
        drawn = draw.integers(groups, size=(rows, groups)) + np.arange(rows)[:, None] * groups
        counts_RG = np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(np.float64)
        blocks.append(ratio(counts_RG @ numerators_GM, counts_RG @ denominators_GM))
    return np.concatenate(blocks)


def ratio(numerators: FLOATS, denominators: FLOATS) -> FLOATS:
    """Their ratio, 0 where the denominator is 0."""
    return np.divide(numerators, denominators, out=np.zeros_like(numerators), where=denominators != 0)


def permutation_p(first: tuple[FLOATS, FLOATS], second: tuple[FLOATS, FLOATS], permutations: int, seed: int) -> float:
    """Two-sided p that two exits score alike: each group's values are swapped between the two or not, by a fair coin.

    The observed order counts as one permutation, so that p is never 0 and the test keeps its level.
    """
    (numerators_a, denominators_a), (numerators_b, denominators_b) = first, second
    columns_G4 = np.stack([numerators_a, denominators_a, numerators_b, denominators_b], axis=1)
    swapped_G4 = columns_G4[:, [2, 3, 0, 1]] - columns_G4
    observed = abs(float(_difference(columns_G4.sum(axis=0)[None])[0]))
    draw = generator(seed, "permutations", len(columns_G4))
    beyond = 0
    for start in range(0, permutations, _ROWS_AT_ONCE):
        coins_PG = draw.integers(2, size=(min(_ROWS_AT_ONCE, permutations - start), len(columns_G4))).astype(np.float64)
        found_P = np.abs(_difference(columns_G4.sum(axis=0) + coins_PG @ swapped_G4))
        # Sums in another order differ in the last digits: what is equal must count as not smaller.
        beyond += int((found_P >= observed - 1e-12).sum())
    return (beyond + 1) / (permutations + 1)


def _difference(sums_P4: FLOATS) -> FLOATS:
    return ratio(sums_P4[:, 0], sums_P4[:, 1]) - ratio(sums_P4[:, 2], sums_P4[:, 3])


def exit_differences(
    names: Sequence[str], values: Sequence[Values], group_U: NDArray[np.int64], draws_RM: FLOATS, permutations: int, seed: int
) -> dict[str, Difference]:
    """Every pair of exits, shallower first, by `04-09`; `draws_RM` are their resampled scores."""
    numerators_GM, denominators_GM = grouped(values, group_U)
    found = {}
    for a, b in itertools.combinations(range(len(names)), 2):
        score = percentiles(values[a].score - values[b].score, draws_RM[:, a] - draws_RM[:, b])
        sides = [(numerators_GM[:, side], denominators_GM[:, side]) for side in (a, b)]
        found[f"{names[a]}-{names[b]}"] = Difference(score, permutation_p(sides[0], sides[1], permutations, seed))
    return found


def similarity_tests(
    names: Sequence[str], own: Sequence[FLOATS], hits: Sequence[NDArray[np.bool_]], permutations: int, seed: int
) -> dict[str, SimilarityTest]:
    """Fig. 4 of the paper: do two exits give correctly retrieved pairs different similarities? By `04-09`, shallower first.

    Pairs that both exits retrieve at rank 1 are compared; the paper does not say which. The signs of the differences are drawn.
    """
    found = {}
    for a, b in itertools.combinations(range(len(names)), 2):
        difference_U = (own[a] - own[b])[hits[a] & hits[b]]
        found[f"{names[a]}-{names[b]}"] = _sign_test(difference_U, permutations, seed)
    return found


def _sign_test(difference_U: FLOATS, permutations: int, seed: int) -> SimilarityTest:
    count = len(difference_U)
    spread = float(difference_U.std(ddof=1)) if count > 1 else 0.0
    if not spread:
        return SimilarityTest(0.0, 1.0, count)
    zeros_U, ones_U = np.zeros(count), np.ones(count)
    p = permutation_p((difference_U, ones_U), (zeros_U, ones_U), permutations, seed)
    return SimilarityTest(float(difference_U.mean()) / (spread / count**0.5), p, count)
