"""The task on whole rows: in-context classification (paper section 2.1), or next-sentence prediction instead."""

import torch.nn.functional as F
from torch import Tensor

from mose.dataset.packing_modes import ICC, NSP
from pretrain.model.terms.term import RowPredictions, RowTerm

_MEANINGS = {ICC: "whether a row mixes two repositories", NSP: "whether a row's two segments are of two repositories"}


def _loss(predictions: RowPredictions) -> Tensor:
    return F.cross_entropy(predictions.logits_B2, predictions.labels_B, reduction="sum")


def _correct(predictions: RowPredictions) -> Tensor:
    return (predictions.logits_B2.argmax(dim=1) == predictions.labels_B).sum()


ROW_TASK = RowTerm(
    key="task",
    meanings=_MEANINGS,
    name=lambda objective: objective.sequence_task,
    weight=lambda objective: objective.task_weight if objective.sequence_task in _MEANINGS else 0.0,
    loss=_loss,
    correct=_correct,
    computed_when_off=True,
)
