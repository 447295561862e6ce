"""Precision, recall and F1 of an exit's predictions, and the threshold of two classes that gives the best F1.

Letters: R rows, C classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LABELS = NDArray[np.int64]
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class ClassScores:
    """Scores of class 1 where there are two classes (as the paper reports clones), else means over the classes (macro)."""

    precision: float
    recall: float
    f1: float
    accuracy: float


def class_scores(predicted_R: LABELS, labels_R: LABELS, classes: int) -> ClassScores:
    """Scores of predictions; where a ratio has denominator 0, it is 0, as in scikit-learn."""
    counts_CC = np.bincount(labels_R * classes + predicted_R, minlength=classes * classes).reshape(classes, classes)
    hits_C, true_C, predicted_C = counts_CC.diagonal(), counts_CC.sum(axis=1), counts_CC.sum(axis=0)
    precision_C = hits_C / np.maximum(predicted_C, 1)
    recall_C = hits_C / np.maximum(true_C, 1)
    f1_C = 2 * hits_C / np.maximum(predicted_C + true_C, 1)
    counted = slice(1, 2) if classes == 2 else slice(None)
    precision, recall, f1 = (float(values_C[counted].mean()) for values_C in (precision_C, recall_C, f1_C))
    return ClassScores(precision, recall, f1, float(hits_C.sum() / max(len(labels_R), 1)))


def best_threshold(positive_R: NDArray[np.float64], labels_R: LABELS) -> float:
    """The threshold of the probability of class 1 that gives class 1 the largest F1; class 1 is predicted from it upwards.

    It lies half-way to the next lower probability, and of equally good ones nearest to .5. Without a row of class 1 there is
    no F1 to choose by, and it is .5.
    """
    positives = int(labels_R.sum())
    if not positives:
        return DEFAULT_THRESHOLD
    order = np.argsort(-positive_R, kind="stable")
    ranked_R = positive_R[order]
    hits_R = np.cumsum(labels_R[order])
    # Rows of equal probability fall on the same side: only the last of each group is a cut.
    cuts = np.flatnonzero(np.append(ranked_R[1:] < ranked_R[:-1], True))
    f1 = 2 * hits_R[cuts] / (cuts + 1 + positives)
    upper, lower = ranked_R[cuts], np.append(ranked_R[1:], 0.0)[cuts]
    middle = (upper + lower) / 2
    # Between two neighbouring numbers there is none: their mean is rounded, maybe to the lower one.
    thresholds = np.where(middle > lower, middle, upper)
    best = np.flatnonzero(f1 == f1.max())
    return float(thresholds[best[np.abs(thresholds[best] - DEFAULT_THRESHOLD).argmin()]])
