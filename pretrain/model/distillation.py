"""The divergence of one exit's predictions from the deepest exit's, over a vocabulary that is whole or cut over ranks.

Letters: M masked tokens, V vocabulary columns (of this rank under tensor parallelism).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def _as_it_is(numbers_M: Tensor) -> Tensor:
    return numbers_M


@dataclass(frozen=True)
class VocabularyReductions:
    """How one number [M] of each of the ranks that share a vocabulary becomes that of the whole; outside of autograd."""

    maximum: Callable[[Tensor], Tensor] = _as_it_is
    total: Callable[[Tensor], Tensor] = _as_it_is


ONE_RANK = VocabularyReductions()


@torch.no_grad()
def log_probabilities(logits_MV: Tensor, temperature: float, reductions: VocabularyReductions = ONE_RANK) -> Tensor:
    """log softmax(logits / temperature) [M, V] in float32 over the whole vocabulary; -inf where the logit is. No gradient."""
    scaled_MV = logits_MV.float() / temperature
    largest_M = reductions.maximum(scaled_MV.amax(dim=1))
    scaled_MV -= largest_M[:, None]
    total_M = reductions.total(scaled_MV.exp().sum(dim=1))
    return scaled_MV.sub_(total_M.log()[:, None])


def divergence(logits_MV: Tensor, teacher_MV: Tensor, temperature: float, reductions: VocabularyReductions = ONE_RANK) -> Tensor:
    """temperature^2 x KL(teacher || student) [M] in float32, from a student's logits and a teacher's log-probabilities.

    Equals `F.kl_div(log_softmax(logits / t), teacher, log_target=True)` summed over the vocabulary, times t^2. The teacher gets
    no gradient; the student's is t (q - p), cut as the logits are. One buffer [M, V] is kept for the backward pass.
    """
    return _Divergence.apply(logits_MV, teacher_MV, temperature, reductions)  # type: ignore[no-any-return, no-untyped-call]


class _Divergence(torch.autograd.Function):
    """Written out because its sums run over ranks, which autograd would not differentiate rightly."""

    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, teacher_MV: Tensor, temperature: float, reductions: VocabularyReductions) -> Tensor:
        student_MV = log_probabilities(logits_MV, temperature, reductions)
        chances_MV = teacher_MV.exp()
        # Padding columns are -inf on both sides: they hold nothing, not the NaN of 0 x (-inf + inf).
        parts_MV = chances_MV * torch.where(teacher_MV.isneginf(), 0.0, teacher_MV - student_MV)
        difference_MV = student_MV.exp_().sub_(chances_MV)
        ctx.temperature = temperature
        ctx.type = logits_MV.dtype
        ctx.save_for_backward(difference_MV)
        # The differences sum to 0; added, they take away the rounding of the two normalisers, which else is of the first order.
        return reductions.total((parts_MV + difference_MV).sum(dim=1)) * temperature**2

    @staticmethod
    def backward(ctx: Any, gradient_M: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (difference_MV,) = ctx.saved_tensors
        return (difference_MV * (gradient_M[:, None] * ctx.temperature)).to(ctx.type), None, None, None
