"""The MLM term: cross-entropy of the masked tokens (paper section 2.1)."""

from torch import Tensor

from pretrain.model.terms.term import TokenPredictions, TokenTerm

NAME = "mlm"


def _loss(predictions: TokenPredictions) -> Tensor:
    return predictions.vocabulary.cross_entropy(predictions.logits_MV, predictions.labels_M).sum()


def _correct(predictions: TokenPredictions) -> Tensor:
    return predictions.vocabulary.correct(predictions.logits_MV, predictions.labels_M).sum()


MASKED_TOKENS = TokenTerm(
    key=NAME,
    meanings={NAME: "masked-token prediction"},
    name=lambda objective: NAME,
    weight=lambda objective: 1.0,
    loss=_loss,
    correct=_correct,
)
