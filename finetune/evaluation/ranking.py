"""The candidates of each query, and the rank of its own code among them under any similarity.

Letters: Q queries, K codes of the corpus, C candidates of a query (own code and distractors), D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.evaluation.metrics import RANKS, ranks_of
from mose.errors import MoseError
from mose.seeding import generator

# Queries per block against the whole corpus: 256 x 100,000 similarities are 100 MB in float32.
QUERIES_AT_ONCE = 256
Similarities = Callable[[slice], NDArray[np.floating]]


@dataclass(frozen=True)
class Candidates:
    """Which codes of the corpus each query is ranked against: its own [Q], and its distractors [Q, C - 1]."""

    own_Q: NDArray[np.int64]
    distractors_QC: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Candidates of a query, its own code included."""
        return 1 + int(self.distractors_QC.shape[1])


def distinct_codes(codes: Sequence[str]) -> tuple[list[int], NDArray[np.int64]]:
    """The first occurrence of each distinct code, and for every code its place among those.

    Equal codes are one entry of the corpus: a copy of a query's own code is no distractor.
    """
    places: dict[str, int] = {}
    firsts: list[int] = []
    for index, code in enumerate(codes):
        if code not in places:
            places[code] = len(firsts)
            firsts.append(index)
    return firsts, np.array([places[code] for code in codes], dtype=np.int64)


def draw_candidates(own_Q: NDArray[np.int64], num_codes: int, distractors: int, seed: int) -> Candidates:
    """Draw each query's distractors without replacement, never its own code; all other codes if there are fewer.

    Query q's draw depends on the seed, q and the corpus size alone.

    Raises:
        MoseError: the corpus holds fewer than two codes.
    """
    if num_codes < 2:
        raise MoseError(f"pairs: {num_codes} distinct codes in this split, expected at least 2 to rank among")
    count = min(distractors, num_codes - 1)
    others_QC = np.empty((len(own_Q), count), dtype=np.int64)
    for query in range(len(own_Q)):
        draw = generator(seed, "distractors", query)
        others_QC[query] = draw.choice(num_codes - 1, size=count, replace=False, shuffle=False)
    others_QC += others_QC >= own_Q[:, None]
    return Candidates(own_Q, others_QC)


def rank_queries(candidates: Candidates, similarities: Similarities) -> RANKS:
    """Rank [Q] of each query's own code; `similarities` gives [q, K] for a slice of the queries."""
    ranks = []
    for start in range(0, len(candidates.own_Q), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        scores_QK = similarities(part)
        own_Q = np.take_along_axis(scores_QK, candidates.own_Q[part, None], axis=1)[:, 0]
        ranks.append(ranks_of(own_Q, np.take_along_axis(scores_QK, candidates.distractors_QC[part], axis=1)))
    return np.concatenate(ranks)


def rank_embeddings(candidates: Candidates, queries_QD: NDArray[np.floating], codes_KD: NDArray[np.floating]) -> RANKS:
    """Rank [Q] by dot product; normalised embeddings make it the cosine."""
    return rank_queries(candidates, lambda part: queries_QD[part] @ codes_KD.T)
