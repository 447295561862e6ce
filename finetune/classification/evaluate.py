"""Scores of every exit on labelled rows: arg-max as in the paper, and with a threshold chosen on the validation files.

Letters: E exits, R rows, C classes.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from finetune.classification.scores import LABELS, ClassScores, best_threshold, class_scores
from mose.checkpoint.card_facts import Measured, ScoredTask
from mose.run_directory import exit_name


@dataclass(frozen=True)
class ExitClassScores:
    """One exit: scores by the largest logit and, for two classes, with the threshold of the validation files."""

    layer: int
    argmax: ClassScores
    threshold: float | None = None
    with_threshold: ClassScores | None = None


@dataclass(frozen=True)
class SplitScores:
    """Every exit's scores on the files of one split, and those of always predicting one class."""

    rows: int
    exits: dict[str, ExitClassScores]
    constant: ClassScores
    """Always class 1 where there are two classes: it finds every clone. With more classes, always the most frequent one."""

    @property
    def mean_f1(self) -> float:
        """F1 of the largest logit, mean over the exits: by it the best step is chosen."""
        return statistics.fmean(scores.argmax.f1 for scores in self.exits.values())


@dataclass(frozen=True)
class ClassificationScores:
    """What evaluation.json holds; the threshold's scores on the validation files are those that it was chosen by."""

    classes: int
    validation: SplitScores
    test: SplitScores | None = None

    @property
    def thresholds(self) -> list[float] | None:
        """The threshold of each exit, shallow to deep; None with more than two classes."""
        found = [scores.threshold for scores in self.validation.exits.values()]
        return [value for value in found if value is not None] or None

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {"task": "classification", **dataclasses.asdict(self)}


def positive_probabilities(logits_RC: Tensor) -> NDArray[np.float64]:
    """Probability [R] of class 1 of two."""
    probabilities_R: NDArray[np.float64] = torch.softmax(logits_RC.double(), dim=-1)[:, 1].numpy()
    return probabilities_R


def choose_thresholds(logits_ERC: Tensor, labels_R: LABELS) -> list[float] | None:
    """The threshold of each exit with the largest F1 on these rows; None where there are more than two classes."""
    if logits_ERC.shape[-1] != 2:
        return None
    return [best_threshold(positive_probabilities(logits_RC), labels_R) for logits_RC in logits_ERC]


def score_split(
    exit_layers: Sequence[int], logits_ERC: Tensor, labels_R: LABELS, thresholds: Sequence[float] | None
) -> SplitScores:
    """Score the logits of every exit."""
    classes = logits_ERC.shape[-1]
    exits = {}
    for index, layer in enumerate(exit_layers):
        argmax = class_scores(logits_ERC[index].argmax(dim=-1).numpy(), labels_R, classes)
        scores = ExitClassScores(layer, argmax)
        if thresholds is not None:
            predicted_R = (positive_probabilities(logits_ERC[index]) >= thresholds[index]).astype(np.int64)
            chosen = class_scores(predicted_R, labels_R, classes)
            scores = dataclasses.replace(scores, threshold=thresholds[index], with_threshold=chosen)
        exits[exit_name(layer)] = scores
    always = 1 if classes == 2 else int(np.bincount(labels_R).argmax())
    return SplitScores(len(labels_R), exits, class_scores(np.full_like(labels_R, always), labels_R, classes))


def scores_table(name: str, split: SplitScores) -> Table:
    """Exit x precision, recall, F1 and accuracy, with the threshold's beside; the last line predicts one class always."""
    table = Table(title=f"{name}: {split.rows:,} rows", title_justify="left")
    columns = ("precision", "recall", "F1", "accuracy")
    chosen = any(scores.with_threshold for scores in split.exits.values())
    table.add_column("exit")
    for column in (*columns, *(("threshold", *columns) if chosen else ())):
        table.add_column(column, justify="right")
    for exit_number, scores in split.exits.items():
        cells = _cells(scores.argmax)
        if scores.with_threshold is not None and scores.threshold is not None:
            cells += [f"{scores.threshold:.3f}", *_cells(scores.with_threshold)]
        table.add_row(exit_number, *cells)
    table.add_section()
    table.add_row("one class always", *_cells(split.constant))
    return table


def card_tasks(scores: ClassificationScores) -> tuple[ScoredTask, ...]:
    """The scores of the largest logit as a model card lists them: of the test files, or else of the validation files."""
    name, split = ("test", scores.test) if scores.test is not None else ("validation", scores.validation)
    measures = {"f1": "F1", "precision": "precision", "recall": "recall", "accuracy": "accuracy"}

    def measured(row: ClassScores) -> dict[str, Measured]:
        return {measure: Measured(getattr(row, measure)) for measure in measures}

    return (
        ScoredTask(
            title="Classification",
            dataset=f"the run's {name} files",
            split=name,
            task_type="text-classification",
            measures=measures,
            exits={row.layer: measured(row.argmax) for row in split.exits.values()},
            references={"one class always": measured(split.constant)},
            note=f"{split.rows:,} rows, the class of the largest logit",
        ),
    )


def _cells(scores: ClassScores) -> list[str]:
    return [f"{value:.3f}" for value in dataclasses.astuple(scores)]
