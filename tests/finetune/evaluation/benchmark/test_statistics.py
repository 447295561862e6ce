"""Intervals against their standard error, and the permutation test against all permutations, scipy, and its own level."""

import itertools

import numpy as np
import pytest
from scipy.stats import ttest_rel
from sklearn.metrics import f1_score

from finetune.evaluation.benchmark.statistics import (
    exit_differences,
    grouped,
    permutation_p,
    resampled,
    similarity_tests,
)
from finetune.evaluation.metrics import percentiles, unit_groups
from finetune.evaluation.tasks.parts.problem import Values


def single(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.astype(float), np.ones(len(values))


def test_intervals_have_the_width_of_the_standard_error(rng: np.random.Generator) -> None:
    values = Values.mean(rng.random(400))
    draws = resampled(*grouped([values], np.arange(400)), 2000, 1, "part")[:, 0]
    low, high = percentiles(values.score, draws).interval
    assert low < values.score < high
    assert high - low == pytest.approx(2 * 1.96 * values.numerator_U.std() / 20, rel=0.1)
    assert np.array_equal(draws, resampled(*grouped([values], np.arange(400)), 2000, 1, "part")[:, 0])
    assert not np.array_equal(draws, resampled(*grouped([values], np.arange(400)), 2000, 1, "other")[:, 0])


def test_groups_are_drawn_whole_where_there_are_enough(rng: np.random.Generator) -> None:
    level = rng.random(10)
    values, groups = Values.mean(np.repeat(level, 40)), [f"r{group}" for group in range(10) for _ in range(40)]
    draws = resampled(*grouped([values], unit_groups(400, groups)), 2000, 1, "part")[:, 0]
    low, high = percentiles(values.score, draws).interval
    assert high - low == pytest.approx(2 * 1.96 * level.std() / 10**0.5, rel=0.15)
    assert unit_groups(6, ["a", "b", "c", "a", "b", "c"]).tolist() == [0, 1, 2, 3, 4, 5]
    assert unit_groups(3, []).tolist() == [0, 1, 2]


def test_f1_is_resampled_as_a_ratio(rng: np.random.Generator) -> None:
    truth, predicted = rng.random(300) < 0.5, rng.random(300) < 0.5
    values = Values(2.0 * (truth & predicted), truth.astype(float) + predicted)
    draws = resampled(*grouped([values], np.arange(300)), 500, 1, "part")[:, 0]
    drawn = rng.integers(300, size=(500, 300))
    own = 2 * (truth & predicted)[drawn].sum(axis=1) / (truth[drawn].sum(axis=1) + predicted[drawn].sum(axis=1))
    assert values.score == pytest.approx(f1_score(truth, predicted))
    assert draws.mean() == pytest.approx(np.mean(own), abs=0.01) and draws.std() == pytest.approx(np.std(own), rel=0.2)


def test_p_equals_that_of_all_permutations(rng: np.random.Generator) -> None:
    first, second = rng.integers(0, 4, size=(2, 8)) / 4
    differences = first - second
    means = [abs(np.mean(differences * signs)) for signs in itertools.product([1, -1], repeat=8)]
    exact = np.mean(np.array(means) >= abs(differences.mean()) - 1e-12)
    assert permutation_p(single(first), single(second), 20_000, 1) == pytest.approx(exact, abs=0.015)


def test_p_of_equal_exits_is_one_and_of_clear_ones_the_smallest(rng: np.random.Generator) -> None:
    values = rng.random(60)
    assert permutation_p(single(values), single(values), 999, 1) == 1
    assert permutation_p(single(values), single(values + 0.5), 999, 1) == 1 / 1000


def test_the_test_keeps_its_level(rng: np.random.Generator) -> None:
    """Of 400 pairs of exits that differ by chance alone, about 5 % are called different at .05."""
    found = [permutation_p(single(rng.random(30)), single(rng.random(30)), 199, seed) for seed in range(400)]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_differences_are_paired(rng: np.random.Generator) -> None:
    hard = rng.random(200)
    values = [Values.mean(hard), Values.mean(hard + rng.normal(0.02, 0.01, size=200))]
    draws = resampled(*grouped(values, np.arange(200)), 1000, 1, "part")
    found = exit_differences(["01", "02"], values, np.arange(200), draws, 500, 1)["01-02"]
    low, high = found.difference.interval
    assert low < -0.02 < high < 0 and high - low < 0.01 and found.p < 0.005


def test_t_of_similarities_is_scipys_on_pairs_that_both_retrieve(rng: np.random.Generator) -> None:
    own = [rng.normal(size=50), rng.normal(0.3, 1, size=50)]
    hits = [rng.random(50) < 0.8, rng.random(50) < 0.8]
    found = similarity_tests(["01", "02"], own, hits, 5000, 1)["01-02"]
    both = hits[0] & hits[1]
    expected = ttest_rel(own[0][both], own[1][both])
    assert found.t == pytest.approx(expected.statistic) and found.queries == both.sum()
    assert found.p == pytest.approx(expected.pvalue, abs=0.03)
    none = similarity_tests(["01", "02"], own, [~both, both], 50, 1)["01-02"]
    assert (none.t, none.p, none.queries) == (0, 1, 0)
