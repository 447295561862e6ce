"""The lexical baseline: TF-IDF over words, with identifiers split into their parts.

Letters: Q queries, K codes of the corpus.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from finetune.evaluation.metrics import RANKS
from finetune.evaluation.ranking import Candidates, rank_queries

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


def rank_tfidf(candidates: Candidates, queries: Sequence[str], codes: Sequence[str]) -> RANKS:
    """Rank [Q] of each query's own code by cosine of TF-IDF vectors (sublinear counts), fitted on the K codes."""
    vectorizer = TfidfVectorizer(analyzer=lexical_terms, sublinear_tf=True, dtype=np.float32)
    codes_KV = vectorizer.fit_transform(codes)
    queries_QV = vectorizer.transform(queries)

    def similarities(part: slice) -> NDArray[np.floating]:
        dense: NDArray[np.floating] = (queries_QV[part] @ codes_KV.T).toarray()
        return dense

    return rank_queries(candidates, similarities)
