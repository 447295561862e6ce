"""Which queries are scored."""

from collections import Counter

from finetune.config import EvaluationConfig
from finetune.evaluation.tasks.docstring_search import draw_queries


def test_no_repository_has_more_queries_than_asked_for():
    repositories = ["large"] * 90 + ["small"] * 4 + ["middle"] * 20
    config = EvaluationConfig("model", "pairs", "out", max_queries_per_repository=10)
    places = draw_queries(repositories, config)
    assert Counter(repositories[place] for place in places) == {"large": 10, "small": 4, "middle": 10}
    assert places.tolist() == sorted(set(places.tolist())) == draw_queries(repositories, config).tolist()


def test_without_limits_every_pair_is_a_query():
    assert draw_queries(["a", "b", "a"], EvaluationConfig("model", "pairs", "out")).tolist() == [0, 1, 2]
    assert len(draw_queries(["a"] * 9, EvaluationConfig("model", "pairs", "out", max_queries=4))) == 4
