"""The multi-exit loss: its terms at every exit, as sums over this micro-batch divided by counts of the whole global batch.

Letters: N real tokens, D width, B rows, M masked tokens, V vocabulary rows (of this rank under tensor parallelism), E exits,
C columns of sums.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mose.model.modeling_mose import StarEncoder2Pooler, StarEncoder2PreTrainingHeads
from pretrain.config.objective import NONE, ObjectiveConfig
from pretrain.data.micro_batch import MicroBatch
from pretrain.model.distillation import ONE_RANK, VocabularyReductions, divergence, log_probabilities

COLUMNS = ("mlm", "task", "distillation", "mlm_correct", "task_correct")


@dataclass(frozen=True)
class VocabularyOperations:
    """What is done with vocabulary logits [M, V], whether whole or cut over ranks."""

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


@dataclass(frozen=True)
class Denominators:
    """What sums are divided by: masked tokens and rows of the whole global batch, over all data ranks."""

    masked_tokens: int
    rows: int


@dataclass(frozen=True)
class ExitLoss:
    """One exit's terms as sums over this micro-batch; `distillation` is None where there is no such term."""

    mlm: Tensor
    task: Tensor
    distillation: Tensor | None
    mlm_correct: Tensor
    task_correct: Tensor

    def columns(self) -> Tensor:
        """Detached sums [C] in float64, in the order of `COLUMNS`."""
        distillation = torch.zeros_like(self.mlm) if self.distillation is None else self.distillation
        parts = (self.mlm, self.task, distillation, self.mlm_correct, self.task_correct)
        return torch.stack([part.detach().double() for part in parts])


class MultiExitLoss:
    """The objective over one model's heads; holds no parameters of its own."""

    def __init__(
        self,
        pooler: StarEncoder2Pooler,
        heads: StarEncoder2PreTrainingHeads,
        vocabulary: VocabularyOperations,
        objective: ObjectiveConfig,
        weights: Sequence[float],
    ):
        """`weights` [E] are those of the exits, shallow to deep."""
        self._pooler, self._heads, self._vocabulary = pooler, heads, vocabulary
        self._objective, self._weights = objective, weights

    def __call__(self, states: Sequence[Tensor], batch: MicroBatch, denominators: Denominators) -> tuple[Tensor, Tensor]:
        """This micro-batch's share of the global loss, and sums [E, C] in the order of `COLUMNS`, from states [N, D].

        Where there is distillation, the deepest exit comes first: it gives the log-probabilities [M, V] that the others are
        compared with, one more buffer of that size, kept until the backward pass has gone through every exit.
        """
        deepest, distils = len(states) - 1, self._objective.distils
        teacher_MV: Tensor | None = None
        exits: list[ExitLoss] = []
        for index in range(deepest, -1, -1):
            exit_loss, made_MV = self._exit(states[index], index, batch, teacher_MV, distils and index == deepest)
            teacher_MV = made_MV if made_MV is not None else teacher_MV
            exits.insert(0, exit_loss)
        share = states[-1].new_zeros((), dtype=torch.float32)
        for exit_loss, weight in zip(exits, self._weights, strict=True):
            share = share + weight * self._share(exit_loss, denominators)
        return share, torch.stack([exit_loss.columns() for exit_loss in exits])

    def _share(self, exit_loss: ExitLoss, denominators: Denominators) -> Tensor:
        # Without a task its term counts 0 instead of being left out: every parameter then has a gradient in every ZeRO stage.
        task_weight = 0.0 if self._objective.sequence_task == NONE else 1.0
        share = exit_loss.mlm / denominators.masked_tokens + task_weight * (exit_loss.task / denominators.rows)
        if exit_loss.distillation is None:
            return share
        return share + self._objective.distillation_weight * (exit_loss.distillation / denominators.masked_tokens)

    def _exit(
        self, state_ND: Tensor, index: int, batch: MicroBatch, teacher_MV: Tensor | None, teaches: bool
    ) -> tuple[ExitLoss, Tensor | None]:
        """One exit's terms and, where it `teaches`, its log-probabilities [M, V].

        Only masked positions reach the vocabulary projection, so logits are [M, V], never [N, V]; they are made again in the
        backward pass, so that those of one exit at a time are in memory, however many exits there are.
        """
        # Nothing in it is random; and under ZeRO 3 the weights lie otherwise in memory when it runs again.
        mlm, correct, distillation, made_MV = checkpoint(
            self._predict,
            state_ND[batch.masked_N_indices],
            index,
            batch.labels_M,
            teacher_MV,
            teaches,
            use_reentrant=False,
            preserve_rng_state=False,
            determinism_check="none",
        )
        cls_B = batch.cu_seqlens[1:].long() - 1
        logits_B2 = self._heads.classify(self._pooler(state_ND[cls_B]), index).float()
        task = F.cross_entropy(logits_B2, batch.mixed_B, reduction="sum")
        task_correct = (logits_B2.argmax(dim=1) == batch.mixed_B).sum()
        return ExitLoss(mlm, task, distillation, correct, task_correct), made_MV

    def _predict(
        self, state_MD: Tensor, index: int, labels_M: Tensor, teacher_MV: Tensor | None, teaches: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """MLM sum, correct predictions, sum of divergences from the teacher, and log-probabilities for those taught."""
        vocabulary, temperature = self._vocabulary, self._objective.distillation_temperature
        logits_MV = _without_dead_columns(self._heads.predict_tokens(state_MD, index), vocabulary.live_rows)
        with torch.no_grad():
            correct = vocabulary.correct(logits_MV, labels_M).sum()
        mlm = vocabulary.cross_entropy(logits_MV, labels_M).sum()
        taught = None
        if teacher_MV is not None:
            taught = divergence(logits_MV, teacher_MV, temperature, vocabulary.reductions).sum()
        # Last, so that the second run, which ends where the backward pass has what it needs, does not make it again.
        made_MV = log_probabilities(logits_MV, temperature, vocabulary.reductions) if teaches else None
        return mlm, correct, taught, made_MV


def _without_dead_columns(logits_MV: Tensor, live_rows: int) -> Tensor:
    # Padding rows of the vocabulary must not take part in the softmax: seen, 8.386 for 8.285 with 97 rows padded to 104.
    if live_rows < logits_MV.shape[1]:
        dead_V = torch.arange(logits_MV.shape[1], device=logits_MV.device) >= live_rows
        return logits_MV.masked_fill(dead_V, float("-inf"))
    return logits_MV
