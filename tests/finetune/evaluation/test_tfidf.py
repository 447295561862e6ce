"""The lexical baseline: identifiers are split, and its ranks equal plain TF-IDF cosines."""

import math
from collections import Counter

import numpy as np

from finetune.evaluation.ranking import draw_candidates
from finetune.evaluation.tfidf import lexical_terms, rank_tfidf
from tests.finetune.conftest import make_pairs


def test_identifiers_are_split_into_their_parts():
    assert lexical_terms("read_file") == ["read", "file"]
    assert lexical_terms("parseHTTPServer2 x") == ["parse", "http", "server", "2", "parsehttpserver2", "x"]
    assert lexical_terms("größe: naïve") == ["gr", "öß", "e", "größe", "na", "ï", "ve", "naïve"]
    assert lexical_terms("") == []


def test_a_word_shared_with_one_code_finds_it():
    pairs = make_pairs(144)
    candidates = draw_candidates(np.arange(144), 144, 143, seed=0)
    ranks = rank_tfidf(candidates, [pair.nl for pair in pairs], [pair.code_a for pair in pairs])
    assert (ranks == 1).mean() > 0.95


def test_ranks_equal_cosines_computed_by_hand():
    pairs = make_pairs(40)
    texts, codes = [pair.nl for pair in pairs], [pair.code_a for pair in pairs]
    documents = Counter(term for code in codes for term in set(lexical_terms(code)))

    def vector(text: str) -> dict[str, float]:
        counts = Counter(term for term in lexical_terms(text) if term in documents)
        weights = {t: (1 + math.log(n)) * (math.log((1 + 40) / (1 + documents[t])) + 1) for t, n in counts.items()}
        norm = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        return {term: weight / norm for term, weight in weights.items()}

    vectors = [vector(code) for code in codes]
    ranks = rank_tfidf(draw_candidates(np.arange(40), 40, 999, seed=0), texts, codes)
    for query, text in enumerate(texts):
        asked = vector(text)
        cosines = [sum(weight * code.get(term, 0.0) for term, weight in asked.items()) for code in vectors]
        others = [cosine for code, cosine in enumerate(cosines) if code != query]
        assert 1 + sum(c > cosines[query] + 1e-5 for c in others) <= ranks[query]
        assert ranks[query] <= 1 + sum(c >= cosines[query] - 1e-5 for c in others)
