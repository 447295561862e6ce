"""The lexical baselines: identifiers are split, and the ranks equal TF-IDF cosines and BM25 sums computed by hand."""

import math
from collections import Counter

import numpy as np

from finetune.evaluation.baselines.lexical import lexical_terms, rank_bm25, rank_tfidf
from finetune.evaluation.ranking import draw_candidates
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


def test_ranks_equal_bm25_computed_by_hand():
    pairs = make_pairs(40)
    texts, codes = [pair.nl for pair in pairs], [pair.code_a + " pass" * (number % 5) for number, pair in enumerate(pairs)]
    counts = [Counter(lexical_terms(code)) for code in codes]
    documents = Counter(term for count in counts for term in count)
    mean_length = sum(count.total() for count in counts) / 40

    def score(text: str, count: Counter[str]) -> float:
        damping = 1.2 * (0.25 + 0.75 * count.total() / mean_length)
        terms = [term for term in lexical_terms(text) if term in count]
        weights = {term: math.log1p((40 - documents[term] + 0.5) / (documents[term] + 0.5)) for term in terms}
        return sum(weights[term] * count[term] * 2.2 / (count[term] + damping) for term in terms)

    ranks = rank_bm25(draw_candidates(np.arange(40), 40, 999, seed=0), texts, codes)
    for query, text in enumerate(texts):
        scores = [score(text, count) for count in counts]
        others = [value for code, value in enumerate(scores) if code != query]
        assert (
            1 + sum(s > scores[query] + 1e-4 for s in others)
            <= ranks[query]
            <= 1 + sum(s >= scores[query] - 1e-4 for s in others)
        )
