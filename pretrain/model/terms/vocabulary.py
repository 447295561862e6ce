"""Operations on vocabulary logits, whether one rank holds them whole or tensor ranks share them.

Letters: M masked tokens, V vocabulary columns (of this rank under tensor parallelism).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def _as_it_is(numbers_M: Tensor) -> Tensor:
    return numbers_M


@dataclass(frozen=True)
class VocabularyReductions:
    """Reduces values [M] over the ranks that share a vocabulary, outside of autograd."""

    maximum: Callable[[Tensor], Tensor] = _as_it_is
    total: Callable[[Tensor], Tensor] = _as_it_is


ONE_RANK = VocabularyReductions()


@dataclass(frozen=True)
class VocabularyOperations:
    """Loss and accuracy from vocabulary logits [M, V], whole or divided over ranks."""

    cross_entropy: Callable[[Tensor, Tensor], Tensor]
    """(logits [M, V], labels [M]) -> losses [M] in float32."""
    correct: Callable[[Tensor, Tensor], Tensor]
    """(logits [M, V], labels [M]) -> whether the label has the largest logit, bool [M]."""
    live_rows: int
    """Columns of this rank's logits that stand for a token; the others pad the vocabulary."""
    reductions: VocabularyReductions
    """How maxima and sums over the vocabulary are completed over ranks."""


def whole_vocabulary(live_rows: int) -> VocabularyOperations:
    """Operations on logits that one rank holds whole."""
    return VocabularyOperations(
        cross_entropy=lambda logits_MV, labels_M: F.cross_entropy(logits_MV.float(), labels_M, reduction="none"),
        correct=lambda logits_MV, labels_M: logits_MV.argmax(dim=1) == labels_M,
        live_rows=live_rows,
        reductions=ONE_RANK,
    )


@torch.no_grad()
def log_probabilities(logits_MV: Tensor, temperature: float, reductions: VocabularyReductions = ONE_RANK) -> Tensor:
    """log softmax(logits / temperature) [M, V] in float32 over the whole vocabulary; -inf where the logit is. No gradient."""
    scaled_MV = logits_MV.float() / temperature
    largest_M = reductions.maximum(scaled_MV.amax(dim=1))
    scaled_MV -= largest_M[:, None]
    total_M = reductions.total(scaled_MV.exp().sum(dim=1))
    return scaled_MV.sub_(total_M.log()[:, None])
