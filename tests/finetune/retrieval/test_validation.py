"""The validation's MRR: each text against the distinct codes, other answers left out, ties and NaN counted against the model."""

import pytest
import torch
import torch.nn.functional as F

from finetune.retrieval.validation import Validation
from mose.dataset.pairs import Pair

PAIRS = [Pair("sort", "code a", "C"), Pair("sort", "code b", "C"), Pair("hash", "code c", "Go"), Pair("print", "code a", "C")]


def test_queries_share_the_distinct_codes_and_other_answers_are_no_distractors():
    validation = Validation.of(PAIRS, most=10, seed=0)
    assert len(validation.queries) == 4 and len(validation.codes) == 3
    for query, own, others in zip(validation.queries, validation.own_Q.tolist(), validation.other_answers_QK, strict=True):
        answers = {pair.code_a for pair in PAIRS if pair.nl == query.text}
        left_out = {code.text for code, other in zip(validation.codes, others.tolist(), strict=True) if other}
        assert validation.codes[own].text in answers and left_out == answers - {validation.codes[own].text}


def test_a_sample_is_drawn_by_the_seed():
    drawn = [Validation.of(PAIRS, most=2, seed=seed).queries for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 2 and any(queries != drawn[0] for queries in drawn)


def test_ranks_and_ties():
    validation = Validation.of(PAIRS[:3], most=3, seed=0)
    point = torch.ones(6, 4)
    # Of three codes, the two queries of one description have two candidates left, the third has three; all are tied.
    assert validation._mrr(F.normalize(point, dim=-1)) == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
    assert validation._mrr(point * float("nan")) == pytest.approx((1 / 3 + 1 / 3 + 1 / 3) / 3)
    own = F.one_hot(validation.own_Q, 3).float()
    assert validation._mrr(torch.cat((own, torch.eye(3)))) == 1.0
