"""The distillation term: divergence of an exit's predictions from the deepest exit's, for a whole or a divided vocabulary.

Letters: M masked tokens, V vocabulary columns (of this rank under tensor parallelism).
"""

from typing import Any

import torch
from torch import Tensor

from pretrain.model.terms.term import TokenPredictions, TokenTerm
from pretrain.model.terms.vocabulary import ONE_RANK, VocabularyReductions, log_probabilities

NAME = "distillation"


def divergence(logits_MV: Tensor, teacher_MV: Tensor, temperature: float, reductions: VocabularyReductions = ONE_RANK) -> Tensor:
    """temperature^2 x KL(teacher || student) [M] in float32, from a student's logits and a teacher's log-probabilities.

    Equals `F.kl_div(log_softmax(logits / t), teacher, log_target=True)` summed over the vocabulary, times t^2. The teacher gets
    no gradient; the student's is t (q - p), divided over ranks as the logits are. The backward pass keeps one buffer [M, V].
    """
    return _Divergence.apply(logits_MV, teacher_MV, temperature, reductions)  # type: ignore[no-any-return, no-untyped-call]


class _Divergence(torch.autograd.Function):
    """Has its own backward pass because its sums run over ranks, through which autograd would not differentiate correctly."""

    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, teacher_MV: Tensor, temperature: float, reductions: VocabularyReductions) -> Tensor:
        student_MV = log_probabilities(logits_MV, temperature, reductions)
        chances_MV = teacher_MV.exp()
        # Padding columns are -inf on both sides and must add 0, not the NaN of 0 x (-inf + inf).
        parts_MV = chances_MV * torch.where(teacher_MV.isneginf(), 0.0, teacher_MV - student_MV)
        difference_MV = student_MV.exp_().sub_(chances_MV)
        ctx.temperature = temperature
        ctx.type = logits_MV.dtype
        ctx.save_for_backward(difference_MV)
        # The differences sum to 0 but for rounding. Adding them cancels that of the two normalisers, an error of first order.
        return reductions.total((parts_MV + difference_MV).sum(dim=1)) * temperature**2

    @staticmethod
    def backward(ctx: Any, gradient_M: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (difference_MV,) = ctx.saved_tensors
        return (difference_MV * (gradient_M[:, None] * ctx.temperature)).to(ctx.type), None, None, None


def _loss(predictions: TokenPredictions) -> Tensor:
    assert predictions.teacher_MV is not None  # a term that follows the deepest exit is computed beside it only
    temperature, reductions = predictions.objective.distillation_temperature, predictions.vocabulary.reductions
    return divergence(predictions.logits_MV, predictions.teacher_MV, temperature, reductions).sum()


DISTILLATION = TokenTerm(
    key=NAME,
    meanings={NAME: "the deepest exit's predictions of masked tokens"},
    name=lambda objective: NAME,
    weight=lambda objective: objective.distillation_weight,
    loss=_loss,
    follows_deepest=True,
    # The teacher's log-probabilities in float32.
    bytes_per_logit=4,
)
