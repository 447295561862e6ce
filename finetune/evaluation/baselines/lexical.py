"""The lexical baselines: TF-IDF and BM25 over words, with identifiers split into their parts.

Letters: Q queries, K codes of the corpus, V terms.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from finetune.evaluation.metrics import RANKS
from finetune.evaluation.ranking import Candidates, Similarities, rank_queries

# BM25's saturation of counts and share of length normalisation: the usual values (Robertson and Zaragoza 2009).
_K1, _B = 1.2, 0.75
_WORD = re.compile(r"[^\W_]+")
# HTTPServer2 -> HTTP, Server, 2: a run of capitals, a capitalised or lower-case word, a number, letters of other scripts.
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\WA-Za-z\d_]+")


def lexical_terms(text: str) -> list[str]:
    """Lower-case terms: each word, and where an identifier has several parts (camelCase, snake_case) each part."""
    terms: list[str] = []
    for word in _WORD.findall(text):
        parts = _PART.findall(word)
        terms += [part.lower() for part in parts]
        if len(parts) > 1:
            terms.append(word.lower())
    return terms


def tfidf_similarities(queries: Sequence[str], codes: Sequence[str]) -> Similarities:
    """Cosines of TF-IDF vectors (sublinear counts), fitted on the K codes."""
    vectorizer = TfidfVectorizer(analyzer=lexical_terms, sublinear_tf=True, dtype=np.float32)
    codes_KV = vectorizer.fit_transform(codes)
    queries_QV = vectorizer.transform(queries)

    def similarities(part: slice) -> NDArray[np.floating]:
        dense: NDArray[np.floating] = (queries_QV[part] @ codes_KV.T).toarray()
        return dense

    return similarities


def bm25_similarities(queries: Sequence[str], codes: Sequence[str]) -> Similarities:
    """BM25 scores; document frequencies are those of the K codes."""
    vectorizer = CountVectorizer(analyzer=lexical_terms, dtype=np.float32)
    counts_KV = vectorizer.fit_transform(codes)
    queries_QV = vectorizer.transform(queries)
    frequencies_V = counts_KV.getnnz(axis=0)
    inverse_V = np.log1p((len(codes) - frequencies_V + 0.5) / (frequencies_V + 0.5))
    lengths_K = np.asarray(counts_KV.sum(axis=1)).ravel()
    damping_K = _K1 * (1 - _B + _B * lengths_K / max(lengths_K.mean(), 1.0))
    weights_KV = counts_KV.copy()
    rows = np.repeat(np.arange(len(codes)), np.diff(counts_KV.indptr))
    weights_KV.data = inverse_V[counts_KV.indices] * counts_KV.data * (_K1 + 1) / (counts_KV.data + damping_K[rows])

    def similarities(part: slice) -> NDArray[np.floating]:
        dense: NDArray[np.floating] = (queries_QV[part] @ weights_KV.T).toarray()
        return dense

    return similarities


def rank_tfidf(candidates: Candidates, queries: Sequence[str], codes: Sequence[str]) -> RANKS:
    """Rank [Q] of each query's own code by TF-IDF."""
    return rank_queries(candidates, tfidf_similarities(queries, codes))


def rank_bm25(candidates: Candidates, queries: Sequence[str], codes: Sequence[str]) -> RANKS:
    """Rank [Q] of each query's own code by BM25."""
    return rank_queries(candidates, bm25_similarities(queries, codes))
