"""Candidates: distinct, never the own code, the same for every way of scoring; ranks equal a search done by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.evaluation.ranking import distinct_codes, draw_candidates, rank_embeddings
from mose.errors import MoseError


@given(codes=st.integers(2, 60), distractors=st.integers(1, 70), queries=st.integers(1, 80), seed=st.integers(0, 3))
def test_distractors_are_distinct_and_never_the_own_code(codes: int, distractors: int, queries: int, seed: int):
    own = np.arange(queries) % codes
    candidates = draw_candidates(own, codes, distractors, seed)
    assert candidates.count == 1 + min(distractors, codes - 1)
    for place, row in zip(own, candidates.distractors_QC, strict=True):
        assert len(set(row.tolist())) == len(row) and place not in row
        assert row.min() >= 0 and row.max() < codes


def test_a_querys_draw_does_not_depend_on_the_other_queries():
    some = draw_candidates(np.array([3, 7]), 100, 10, seed=1)
    more = draw_candidates(np.array([3, 7, 9]), 100, 10, seed=1)
    assert some.distractors_QC.tolist() == more.distractors_QC[:2].tolist()
    assert some.distractors_QC[0].tolist() != draw_candidates(np.array([3]), 100, 10, seed=2).distractors_QC[0].tolist()


def test_distractors_are_spread_evenly():
    candidates = draw_candidates(np.zeros(2000, dtype=np.int64), 11, 5, seed=0)
    counts = np.bincount(candidates.distractors_QC.ravel(), minlength=11)
    assert counts[0] == 0 and counts[1:].min() > 900 and counts[1:].max() < 1100


def test_a_corpus_of_one_code_is_refused():
    with pytest.raises(MoseError, match="1 distinct codes in this split, expected at least 2"):
        draw_candidates(np.array([0]), 1, 999, 0)


def test_equal_codes_are_one_entry():
    firsts, places = distinct_codes(["a", "b", "a", "c"])
    assert firsts == [0, 1, 3] and places.tolist() == [0, 1, 0, 2]


def test_ranks_equal_those_found_by_sorting(rng: np.random.Generator):
    queries, codes = rng.normal(size=(600, 5)), rng.normal(size=(40, 5))
    own = rng.integers(40, size=600)
    candidates = draw_candidates(own, 40, 12, seed=0)
    ranks = rank_embeddings(candidates, queries, codes)
    for query in range(600):
        pool = [own[query], *candidates.distractors_QC[query]]
        order = sorted(pool, key=lambda code: -queries[query] @ codes[code])
        assert ranks[query] == 1 + order.index(own[query])
