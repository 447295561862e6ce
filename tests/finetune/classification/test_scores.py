"""Scores equal scikit-learn's, for two classes and more; the threshold is the best of all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from finetune.classification.scores import DEFAULT_THRESHOLD, best_threshold, class_scores


@given(st.integers(2, 5), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_scores_are_those_of_scikit_learn(classes: int, rows: list[tuple[int, int]]):
    predicted, labels = (np.array(values) % classes for values in zip(*rows, strict=True))
    average = {"average": "binary"} if classes == 2 else {"average": "macro", "labels": range(classes)}
    expected = precision_recall_fscore_support(labels, predicted, zero_division=0, **average)[:3]
    found = class_scores(predicted, labels, classes)
    assert (found.precision, found.recall, found.f1) == pytest.approx(expected)
    assert found.accuracy == pytest.approx(accuracy_score(labels, predicted))


@given(
    st.lists(
        st.tuples(st.sampled_from((0.0, 0.2, 0.5, 0.5000000000000001, 0.9, 1.0)), st.integers(0, 1)), min_size=1, max_size=30
    )
)
def test_no_threshold_is_better(rows: list[tuple[float, int]]):
    positive, labels = (np.array(values) for values in zip(*rows, strict=True))
    threshold = best_threshold(positive, labels)
    if not labels.any():
        assert threshold == DEFAULT_THRESHOLD
        return
    found = f1_score(labels, positive >= threshold)
    assert found == pytest.approx(max(f1_score(labels, positive >= cut) for cut in np.unique(positive)))


def test_a_threshold_lies_half_way_and_near_a_half():
    assert best_threshold(np.array([0.9, 0.3, 0.1]), np.array([1, 1, 0])) == pytest.approx(0.2)
    # Precision 1 and recall 1/2, or 2/3 and 1 of the rest: the F1 of both cuts is 2/3.
    positive, labels = np.array([0.9, 0.8, 0.6, 0.5, 0.1]), np.array([1, 0, 0, 1, 0])
    assert best_threshold(positive, labels) in (pytest.approx(0.85), pytest.approx(0.3))
