"""The judges of the benchmarks: own document among distractors, MAP@R, NDCG@10, and pairs above a threshold.

Ties count against the model everywhere: of equally similar documents the irrelevant ones rank first.
Letters: Q queries, K documents, C candidates, J relevant documents of one query, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.classification.scores import best_threshold
from finetune.evaluation.metrics import RANKS, hits_at_1, reciprocal_ranks
from finetune.evaluation.ranking import QUERIES_AT_ONCE, Candidates, Similarities, rank_queries
from finetune.evaluation.tasks.parts.problem import Judged, Values

PLACES = NDArray[np.int64]
_NOT_A_DOCUMENT = -1


@dataclass(frozen=True)
class OwnDocument:
    """Each query against its own document and distractors: MRR, NDCG, recall@1 and @10."""

    candidates: Candidates

    def judge(self, similarities: Similarities) -> Judged:
        """Values of each query, and its similarity to its own document."""
        own: list[NDArray[np.floating]] = []

        def seen(part: slice) -> NDArray[np.floating]:
            scores_QK = similarities(part)
            own.append(np.take_along_axis(scores_QK, self.candidates.own_Q[part, None], axis=1)[:, 0])
            return scores_QK

        ranks_Q = rank_queries(self.candidates, seen)
        values = {
            "mrr": reciprocal_ranks(ranks_Q),
            "ndcg": 1.0 / np.log2(1.0 + ranks_Q),  # one relevant document: the ideal gain is 1
            "recall_at_1": hits_at_1(ranks_Q),
            "recall_at_10": (ranks_Q <= 10).astype(np.float64),
        }
        return Judged({name: Values.mean(found_Q) for name, found_Q in values.items()}, np.concatenate(own).astype(np.float64))


def relevant_ranks(
    scores_K: NDArray[np.floating], relevant_J: PLACES, grades_J: PLACES, excluded: int = _NOT_A_DOCUMENT
) -> tuple[PLACES, RANKS]:
    """The order [J] in which the relevant documents come, and their ranks [J] among all documents but `excluded`.

    Counted, not sorted: rank = relevant ones so far + irrelevant ones not below. So ties cost the model all that they can.
    """
    # NaN is worse than any number; as -inf it still ties with -inf, and loses.
    own_J = np.where(np.isnan(scores_K[relevant_J]), -np.inf, scores_K[relevant_J])
    order_J = np.lexsort((grades_J, -own_J))
    is_other_K = np.ones(len(scores_K), dtype=bool)
    is_other_K[relevant_J] = False
    if excluded != _NOT_A_DOCUMENT:
        is_other_K[excluded] = False
    others = np.sort(scores_K[is_other_K])  # NaN last: an irrelevant NaN ranks before everything
    not_below_J = len(others) - np.searchsorted(others, own_J[order_J], side="left")
    return order_J, not_below_J + np.arange(1, len(relevant_J) + 1)


def average_precision_at_r(ranks_J: RANKS) -> float:
    """AP@R from the ascending ranks of the R relevant documents; those beyond rank R count 0 (CodeXGLUE's POJ-104)."""
    count = len(ranks_J)
    precisions_J = np.arange(1, count + 1) / ranks_J
    return float(precisions_J[ranks_J <= count].sum() / count)


def ndcg_at(ranks_J: RANKS, grades_J: PLACES, depth: int) -> float:
    """NDCG at `depth` with linear gains, as trec_eval; 0 where no document has a grade above 0."""
    ideal_J = np.sort(grades_J)[::-1][:depth]
    ideal = float((ideal_J / np.log2(np.arange(2, len(ideal_J) + 2))).sum())
    within_J = ranks_J <= depth
    return float((grades_J[within_J] / np.log2(1.0 + ranks_J[within_J])).sum()) / ideal if ideal else 0.0


@dataclass(frozen=True)
class SameLabel:
    """Programs that solve the same problem: MAP@R, R the number of the others of the label; the query itself is left out."""

    labels_K: PLACES
    query_places: PLACES

    def judge(self, similarities: Similarities) -> Judged:
        """AP@R of each query."""
        members = {label: np.flatnonzero(self.labels_K == label) for label in np.unique(self.labels_K).tolist()}
        values: list[float] = []
        for start in range(0, len(self.query_places), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            for scores_K, place in zip(similarities(part), self.query_places[part].tolist(), strict=True):
                same_J = members[int(self.labels_K[place])]
                same_J = same_J[same_J != place]
                values.append(average_precision_at_r(relevant_ranks(scores_K, same_J, np.ones_like(same_J), place)[1]))
        return Judged({"map_at_r": Values.mean(np.array(values))})


@dataclass(frozen=True)
class JudgedDocuments:
    """Each query with the documents that people judged relevant to it: NDCG@10."""

    relevant: Sequence[PLACES]
    grades: Sequence[PLACES]

    def judge(self, similarities: Similarities) -> Judged:
        """NDCG@10 of each query; documents without a judgment are irrelevant."""
        values: list[float] = []
        for start in range(0, len(self.relevant), QUERIES_AT_ONCE):
            for query, scores_K in enumerate(similarities(slice(start, start + QUERIES_AT_ONCE)), start):
                order_J, ranks_J = relevant_ranks(scores_K, self.relevant[query], self.grades[query])
                values.append(ndcg_at(ranks_J, self.grades[query][order_J], 10))
        return Judged({"ndcg_at_10": Values.mean(np.array(values))})


@dataclass(frozen=True)
class Pairs:
    """Pairs of documents by their places, and whether each is a clone."""

    first_P: PLACES
    second_P: PLACES
    labels_P: PLACES

    def scores(self, similarities: Similarities) -> NDArray[np.float64]:
        """Similarity [P] of each pair."""
        found_P = np.empty(len(self.first_P))
        for start in range(0, int(self.first_P.max(initial=-1)) + 1, QUERIES_AT_ONCE):
            here = np.flatnonzero((self.first_P >= start) & (self.first_P < start + QUERIES_AT_ONCE))
            if len(here):
                scores_QK = similarities(slice(start, start + QUERIES_AT_ONCE))
                found_P[here] = scores_QK[self.first_P[here] - start, self.second_P[here]]
        return found_P


@dataclass(frozen=True)
class ClonePairs:
    """Clone or not, for each pair: precision, recall and F1 of clones.

    A model without a classifier says "clone" from a similarity upwards; the threshold is the best one on the pairs of `tuning`.
    """

    tuning: Pairs
    scored: Pairs

    def judge(self, similarities: Similarities) -> Judged:
        """Values of each scored pair, with the threshold of the tuning pairs."""
        threshold = best_threshold(_unit(self.tuning.scores(similarities)), self.tuning.labels_P)
        return self.judge_predictions(_unit(self.scored.scores(similarities)) >= threshold)

    def judge_predictions(self, predicted_P: NDArray[np.bool_]) -> Judged:
        """Values of each scored pair from what was predicted."""
        true_P = self.scored.labels_P == 1
        hits_P, either_P = (predicted_P & true_P).astype(np.float64), predicted_P.astype(np.float64) + true_P
        return Judged(
            {
                "f1": Values(2 * hits_P, either_P),
                "precision": Values(hits_P, predicted_P.astype(np.float64)),
                "recall": Values(hits_P, true_P.astype(np.float64)),
            }
        )


def _unit(similarities_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines as numbers from 0 to 1, in the same order, as thresholds of probabilities are chosen."""
    return (1.0 + similarities_P) / 2.0
