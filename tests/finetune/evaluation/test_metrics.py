"""Scores: MRR and recall@1 against ir-measures and scikit-learn, ties against us, chance, and the bootstrap interval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score

from finetune.evaluation.metrics import bootstrap, bootstrap_over_seeds, chance_mrr, hits_at_1, ranks_of, reciprocal_ranks


def test_mrr_and_recall_equal_ir_measures(rng: np.random.Generator):
    ir_measures = pytest.importorskip("ir_measures")
    scores = rng.normal(size=(50, 30))
    found = ranks_of(scores[:, 0], scores[:, 1:])
    qrels = [ir_measures.Qrel(f"q{query}", "c0", 1) for query in range(50)]
    run = [ir_measures.ScoredDoc(f"q{query}", f"c{code}", scores[query, code]) for query in range(50) for code in range(30)]
    expected = ir_measures.calc_aggregate([ir_measures.RR, ir_measures.R @ 1], qrels, run)
    assert reciprocal_ranks(found).mean() == pytest.approx(expected[ir_measures.RR], rel=1e-6)
    assert hits_at_1(found).mean() == pytest.approx(expected[ir_measures.R @ 1], rel=1e-6)


def test_mrr_equals_scikit_learn_with_ties(rng: np.random.Generator):
    """With one relevant code a query, label ranking average precision is MRR, and it counts ties as worse, too."""
    scores = rng.integers(0, 6, size=(200, 12)).astype(float)
    relevant = np.zeros((200, 12), dtype=int)
    relevant[:, 0] = 1
    expected = label_ranking_average_precision_score(relevant, scores)
    assert reciprocal_ranks(ranks_of(scores[:, 0], scores[:, 1:])).mean() == pytest.approx(expected, rel=1e-9)


def test_ties_and_nan_count_against_us():
    assert ranks_of(np.zeros(1), np.array([[0.0, 0.0, -1.0]])).tolist() == [3]
    assert ranks_of(np.array([np.nan]), np.array([[0.0, 1.0]])).tolist() == [3]
    assert ranks_of(np.array([1.0]), np.array([[np.nan, 0.0]])).tolist() == [2]


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=20), st.integers(-5, 5))
def test_rank_is_one_more_than_the_distractors_not_below(distractors: list[int], own: int):
    rank = ranks_of(np.array([own]), np.array([distractors]))
    assert rank.tolist() == [1 + sum(value >= own for value in distractors)]


def test_chance_is_that_of_the_paper_and_of_a_random_order(rng: np.random.Generator):
    assert chance_mrr(1000) == pytest.approx(0.0074855, abs=1e-6)
    ranks = ranks_of(rng.random(20_000), rng.random((20_000, 9)))
    assert reciprocal_ranks(ranks).mean() == pytest.approx(chance_mrr(10), abs=0.01)


def test_interval_is_seeded_and_has_the_width_of_the_standard_error(rng: np.random.Generator):
    values = rng.random(400)
    score = bootstrap(values, seed=1)
    assert score == bootstrap(values, seed=1) != bootstrap(values, seed=2)
    low, high = score.interval
    assert low < score.value < high and score.value == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_interval_draws_whole_repositories(rng: np.random.Generator):
    # 10 repositories of 40 queries that all score alike: the interval is that of 10 values, not of 400.
    level = rng.random(10)
    groups = [f"repository {group}" for group in range(10) for _ in range(40)]
    low, high = bootstrap(np.repeat(level, 40), 1, groups).interval
    assert high - low == pytest.approx(2 * 1.96 * level.std() / 10**0.5, rel=0.15)
    assert bootstrap(level, 1, ["one"] * 10) == bootstrap(level, 1)


def test_interval_over_seeds_has_the_variance_of_both(rng: np.random.Generator):
    # 8 seeds and 20 repositories of 5 queries, each with a level of its own: the variances of both means add.
    seeds, repositories = rng.normal(0, 0.1, 8), rng.normal(0, 0.2, 20)
    values = 0.5 + seeds[:, None] + np.repeat(repositories, 5)[None, :]
    groups = [f"repository {group}" for group in range(20) for _ in range(5)]
    score = bootstrap_over_seeds(values, 1, groups)
    low, high = score.interval
    assert score == bootstrap_over_seeds(values, 1, groups)
    assert score.value == pytest.approx(values.mean())
    deviation = (seeds.var() / 8 + repositories.var() / 20) ** 0.5
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_interval_over_seeds_draws_queries_where_repositories_are_few(rng: np.random.Generator):
    values = rng.random((1, 400))
    low, high = bootstrap_over_seeds(values, 1, ["a"] * 200 + ["b"] * 200).interval
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
