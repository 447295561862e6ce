"""Every measure against its reference on the same predictions: scikit-learn, ir-measures, CodeXGLUE; ties and copies."""

import itertools

import ir_measures
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, ndcg_score, precision_score, recall_score

from finetune.evaluation.ranking import Similarities, draw_candidates
from finetune.evaluation.tasks.parts.judges import (
    ClonePairs,
    JudgedDocuments,
    OwnDocument,
    Pairs,
    SameLabel,
    average_precision_at_r,
    ndcg_at,
    relevant_ranks,
)


def given(scores_QK: NDArray[np.floating]) -> Similarities:
    return lambda part: scores_QK[part]


def reference(measure: object, grades_QK: NDArray[np.int64], scores_QK: NDArray[np.floating]) -> list[float]:
    """ir-measures' value of each query; a grade of -1 is no judgment."""
    qrels = [ir_measures.Qrel(str(q), str(k), int(g)) for (q, k), g in np.ndenumerate(grades_QK) if g >= 0]
    run = [ir_measures.ScoredDoc(str(q), str(k), float(s)) for (q, k), s in np.ndenumerate(scores_QK)]
    found = {row.query_id: row.value for row in ir_measures.iter_calc([measure], qrels, run)}
    return [found[str(query)] for query in range(len(scores_QK))]


def judged(grades_QK: NDArray[np.int64]) -> JudgedDocuments:
    relevant = [np.flatnonzero(row >= 0) for row in grades_QK]
    return JudgedDocuments(relevant, [row[places] for row, places in zip(grades_QK, relevant, strict=True)])


def test_ndcg_at_10_equals_ir_measures_with_grades_and_duplicate_documents(rng: np.random.Generator) -> None:
    scores = rng.normal(size=(40, 30))
    scores[:, 20:] = scores[:, :10] - 1e-4  # copies of the first ten documents, right behind them (trec_eval keeps float32)
    grades = rng.choice([-1, 0, 1, 2, 3], p=[0.6, 0.1, 0.1, 0.1, 0.1], size=(40, 30))
    grades[:, 0] = 1
    found = judged(grades).judge(given(scores)).values["ndcg_at_10"].numerator_U
    assert found == pytest.approx(reference(ir_measures.nDCG @ 10, grades, scores), rel=1e-6)


def test_ndcg_of_all_documents_equals_scikit_learn(rng: np.random.Generator) -> None:
    scores, grades = rng.normal(size=(20, 12)), rng.integers(0, 4, size=(20, 12))
    for row, grade in zip(scores, grades, strict=True):
        order, ranks = relevant_ranks(row, np.arange(12), grade)
        assert ndcg_at(ranks, grade[order], 10) == pytest.approx(ndcg_score(grade[None], row[None], k=10), rel=1e-9)


def test_own_document_measures_equal_ir_measures(rng: np.random.Generator) -> None:
    candidates = draw_candidates(rng.integers(0, 40, size=25), 40, 14, seed=1)
    scores = rng.normal(size=(25, 40))
    places = np.concatenate([candidates.own_Q[:, None], candidates.distractors_QC], axis=1)
    grades = np.where(np.arange(15) == 0, 1, -1)[None].repeat(25, axis=0)
    values = OwnDocument(candidates).judge(given(scores)).values
    cut = np.take_along_axis(scores, places, axis=1)
    pairs = {
        "mrr": ir_measures.RR,
        "ndcg": ir_measures.nDCG,
        "recall_at_1": ir_measures.R @ 1,
        "recall_at_10": ir_measures.R @ 10,
    }
    for name, measure in pairs.items():
        assert values[name].numerator_U == pytest.approx(reference(measure, grades, cut), rel=1e-6), name


def test_own_similarities_are_those_of_the_own_documents(rng: np.random.Generator) -> None:
    candidates = draw_candidates(np.arange(300) % 40, 40, 14, seed=1)
    scores = rng.normal(size=(300, 40))
    own = OwnDocument(candidates).judge(given(scores)).own_Q
    assert own is not None and own.tolist() == scores[np.arange(300), candidates.own_Q].tolist()


def codexglue_map(scores_KK: NDArray[np.floating], labels_K: NDArray[np.int64]) -> list[float]:
    """MAP@R of each program, as CodeXGLUE's POJ-104 scores it: the first R of the order, R the others of the label."""
    values = []
    for place, label in enumerate(labels_K.tolist()):
        order = [int(k) for k in np.argsort(-scores_KK[place], kind="stable") if k != place]
        count = int((labels_K == label).sum()) - 1
        precisions: list[float] = []
        for rank, other in enumerate(order[:count], 1):
            if labels_K[other] == label:
                precisions.append((len(precisions) + 1) / rank)
        values.append(sum(precisions) / count)
    return values


def test_map_at_r_equals_codexglue(rng: np.random.Generator) -> None:
    labels, scores = np.arange(30) % 5, rng.normal(size=(30, 30))
    found = SameLabel(labels, np.arange(30)).judge(given(scores)).values["map_at_r"]
    assert found.numerator_U.tolist() == pytest.approx(codexglue_map(scores, labels), rel=1e-12)
    some = SameLabel(labels, np.array([3, 17])).judge(given(scores[[3, 17]])).values["map_at_r"]
    assert some.numerator_U.tolist() == found.numerator_U[[3, 17]].tolist()


def test_relevant_ranks_give_scikit_learns_average_precision(rng: np.random.Generator) -> None:
    scores, relevant = rng.normal(size=50), np.array([3, 8, 41])
    ranks = relevant_ranks(scores, relevant, np.ones(3, dtype=np.int64))[1]
    truth = np.isin(np.arange(50), relevant)
    assert (np.arange(1, 4) / ranks).mean() == pytest.approx(average_precision_score(truth, scores))


def test_ties_cost_all_that_they_can(rng: np.random.Generator) -> None:
    """Of all orders that equal scores allow, ours has the lowest value of each measure."""
    grades = np.array([2, -1, 1, -1, 0, 1])
    relevant = np.flatnonzero(grades >= 0)
    positive = np.flatnonzero(grades > 0)
    for _ in range(20):
        scores = rng.integers(0, 3, size=6).astype(float)
        orders = [o for o in itertools.permutations(range(6)) if all(scores[a] >= scores[b] for a, b in itertools.pairwise(o))]
        by_order, maps = [], []
        for one in orders:
            places = {document: rank for rank, document in enumerate(one, 1)}
            by_order.append(ndcg_at(np.array([places[k] for k in relevant.tolist()]), grades[relevant], 3))
            maps.append(average_precision_at_r(np.sort([places[k] for k in positive.tolist()])))
        order, ranks = relevant_ranks(scores, relevant, grades[relevant])
        assert ndcg_at(ranks, grades[relevant][order], 3) == pytest.approx(min(by_order))
        lowest = relevant_ranks(scores, positive, np.ones(3, dtype=np.int64))[1]
        assert average_precision_at_r(lowest) == pytest.approx(min(maps))


def test_nan_is_worse_than_any_number() -> None:
    ranks = relevant_ranks(np.array([np.nan, -5.0, 0.0]), np.array([0]), np.array([1]))[1]
    assert ranks.tolist() == [3]
    assert relevant_ranks(np.array([1.0, np.nan, 0.0]), np.array([0]), np.array([1]))[1].tolist() == [2]


def test_clone_scores_equal_scikit_learn(rng: np.random.Generator) -> None:
    labels, predicted = rng.integers(0, 2, size=200), rng.random(200) < 0.6
    pairs = Pairs(np.zeros(200, dtype=np.int64), np.zeros(200, dtype=np.int64), labels)
    values = ClonePairs(pairs, pairs).judge_predictions(predicted).values
    expected = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    assert {name: found.score for name, found in values.items()} == pytest.approx(
        {name: score(labels, predicted) for name, score in expected.items()}
    )
    assert ClonePairs(pairs, pairs).judge_predictions(np.zeros(200, dtype=bool)).values["precision"].score == 0


def test_the_threshold_is_that_of_the_tuning_pairs(rng: np.random.Generator) -> None:
    scores = rng.uniform(-1, 1, size=(300, 300))
    first, second = rng.integers(0, 300, size=(2, 80))
    truth = (scores[first, second] > 0.25).astype(np.int64)
    tuning, scored = Pairs(first, second, truth), Pairs(first[::-1].copy(), second[::-1].copy(), truth[::-1].copy())
    assert ClonePairs(tuning, scored).judge(given(scores)).values["f1"].score == 1
    wrong = Pairs(first, second, 1 - truth)
    assert ClonePairs(wrong, scored).judge(given(scores)).values["f1"].score < 0.9
