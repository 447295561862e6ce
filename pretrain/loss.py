"""The multi-exit loss: MLM and ICC at every exit, as sums over this micro-batch divided by counts of the whole global batch.

Letters: N real tokens, D width, B rows, M masked tokens, V vocabulary rows (of this rank under tensor parallelism), E exits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mose.model.modeling_mose import StarEncoder2Pooler, StarEncoder2PreTrainingHeads

COLUMNS = ("mlm", "icc", "mlm_correct", "icc_correct")


@dataclass(frozen=True)
class VocabularyOperations:
    """What is done with vocabulary logits [M, V], whether whole or cut over ranks."""

    cross_entropy: Callable[[Tensor, Tensor], Tensor]
    """(logits [M, V], labels [M]) -> losses [M] in float32."""
    correct: Callable[[Tensor, Tensor], Tensor]
    """(logits [M, V], labels [M]) -> whether the label has the largest logit, bool [M]."""
    live_rows: int
    """Columns of this rank's logits that stand for a token; the others pad the vocabulary."""


def whole_vocabulary(live_rows: int) -> VocabularyOperations:
    """Operations on logits that one rank holds whole."""
    return VocabularyOperations(
        cross_entropy=lambda logits_MV, labels_M: F.cross_entropy(logits_MV.float(), labels_M, reduction="none"),
        correct=lambda logits_MV, labels_M: logits_MV.argmax(dim=1) == labels_M,
        live_rows=live_rows,
    )


@dataclass(frozen=True)
class Denominators:
    """What sums are divided by: masked tokens and rows of the whole global batch, over all data ranks."""

    masked_tokens: int
    rows: int


def exit_weights(exit_layers: Sequence[int], num_layers: int) -> tuple[float, ...]:
    """i / L for each exit after layer i of L (paper section 2.2)."""
    return tuple(layer / num_layers for layer in exit_layers)


def exit_loss(
    state_ND: Tensor,
    exit_index: int,
    pooler: StarEncoder2Pooler,
    heads: StarEncoder2PreTrainingHeads,
    masked_M: Tensor,
    labels_M: Tensor,
    cls_B: Tensor,
    mixed_B: Tensor,
    vocabulary: VocabularyOperations,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums at one exit: MLM cross-entropy, ICC cross-entropy, and [4] detached sums in the order of `COLUMNS`.

    Only masked positions reach the vocabulary projection, so logits are [M, V], never [N, V]; they are made again in the
    backward pass, so that those of one exit at a time are in memory, however many exits there are.
    """

    def predict(state_MD: Tensor) -> tuple[Tensor, Tensor]:
        logits_MV = _without_dead_columns(heads.predict_tokens(state_MD, exit_index), vocabulary.live_rows)
        with torch.no_grad():
            correct = vocabulary.correct(logits_MV, labels_M).sum()
        return vocabulary.cross_entropy(logits_MV, labels_M).sum(), correct

    # Nothing in it is random; and under ZeRO 3 the weights lie otherwise in memory when it runs again.
    mlm_sum, mlm_correct = checkpoint(
        predict, state_ND[masked_M], use_reentrant=False, preserve_rng_state=False, determinism_check="none"
    )
    logits_B2 = heads.classify(pooler(state_ND[cls_B]), exit_index).float()
    icc_sum = F.cross_entropy(logits_B2, mixed_B, reduction="sum")
    with torch.no_grad():
        icc_correct = (logits_B2.argmax(dim=1) == mixed_B).sum()
        sums = torch.stack([part.double() for part in (mlm_sum, icc_sum, mlm_correct, icc_correct)])
    return mlm_sum, icc_sum, sums


def _without_dead_columns(logits_MV: Tensor, live_rows: int) -> Tensor:
    # Padding rows of the vocabulary must not take part in the softmax: seen, 8.386 for 8.285 with 97 rows padded to 104.
    if live_rows < logits_MV.shape[1]:
        dead_V = torch.arange(logits_MV.shape[1], device=logits_MV.device) >= live_rows
        return logits_MV.masked_fill(dead_V, float("-inf"))
    return logits_MV
