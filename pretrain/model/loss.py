"""The multi-exit loss: its terms at every exit, as sums over this micro-batch divided by counts of the whole global batch.

Letters: N real tokens, D width, B rows, M masked tokens, V vocabulary rows (of this rank under tensor parallelism), E exits,
C columns of sums.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mose.model.modeling_mose import StarEncoder2Pooler, StarEncoder2PreTrainingHeads
from pretrain.config.objective import ObjectiveConfig
from pretrain.data.micro_batch import MicroBatch
from pretrain.model.terms.registry import COLUMNS, TERMS
from pretrain.model.terms.term import Denominators, LossTerm, RowPredictions, RowTerm, TokenPredictions, TokenTerm
from pretrain.model.terms.vocabulary import VocabularyOperations, log_probabilities

# Sums of one exit by column, with gradient where they are losses; a term that the exit does not have is absent.
Sums = dict[str, Tensor]


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
        weighted = {term: term.weight(objective) for term in TERMS}
        self._term_weights = {term: weight for term, weight in weighted.items() if weight > 0 or term.computed_when_off}

    def __call__(self, states: Sequence[Tensor], batch: MicroBatch, denominators: Denominators) -> tuple[Tensor, Tensor]:
        """This micro-batch's share of the global loss, and sums [E, C] in the order of `COLUMNS`, from states [N, D].

        With distillation, the deepest exit's log-probabilities [M, V] stay in memory until the backward pass has gone through
        every exit.
        """
        deepest, has_teacher = len(states) - 1, any(term.follows_deepest for term in self._term_weights)
        teacher_MV: Tensor | None = None
        exits: list[Sums] = []
        # Deepest first: its predictions are the distillation targets of the shallower exits.
        for exit_index in range(deepest, -1, -1):
            teaches = has_teacher and exit_index == deepest
            sums, made_MV = self._exit(states[exit_index], exit_index, batch, teacher_MV, teaches)
            teacher_MV = made_MV if made_MV is not None else teacher_MV
            exits.insert(0, sums)
        share = states[-1].new_zeros((), dtype=torch.float32)
        for sums, weight in zip(exits, self._weights, strict=True):
            share = share + weight * self._share(sums, denominators)
        return share, torch.stack([_columns(sums) for sums in exits])

    def _share(self, sums: Sums, denominators: Denominators) -> Tensor:
        share: Tensor | None = None
        for term, weight in self._term_weights.items():
            if term.key in sums:
                part = weight * (sums[term.key] / term.denominator(denominators))
                share = part if share is None else share + part
        assert share is not None  # the MLM term is never off
        return share

    def _exit(
        self, state_ND: Tensor, exit_index: int, batch: MicroBatch, teacher_MV: Tensor | None, teaches: bool
    ) -> tuple[Sums, Tensor | None]:
        """One exit's sums and, where it `teaches`, its log-probabilities [M, V].

        Only masked positions reach the vocabulary projection, so logits are [M, V], never [N, V]. They are computed again in
        the backward pass, so that memory holds those of one exit at a time, however many exits there are.
        """
        # No random state to restore, since nothing here is random; no check of shapes, since ZeRO 3 changes those of the weights
        # before the recomputation.
        token_sums, made_MV = checkpoint(
            self._token_sums,
            state_ND[batch.masked_N_indices],
            exit_index,
            batch.labels_M,
            teacher_MV,
            teaches,
            use_reentrant=False,
            preserve_rng_state=False,
            determinism_check="none",
        )
        cls_B = batch.cu_seqlens[1:].long() - 1
        logits_B2 = self._heads.classify(self._pooler(state_ND[cls_B]), exit_index).float()
        terms = [term for term in self._term_weights if isinstance(term, RowTerm)]
        return token_sums | _sums_of(terms, RowPredictions(logits_B2, batch.mixed_B)), made_MV

    def _token_sums(
        self, state_MD: Tensor, exit_index: int, labels_M: Tensor, teacher_MV: Tensor | None, teaches: bool
    ) -> tuple[Sums, Tensor | None]:
        """Sums of the terms on masked tokens, and log-probabilities for the exits that learn from this one."""
        vocabulary, objective = self._vocabulary, self._objective
        logits_MV = _without_dead_columns(self._heads.predict_tokens(state_MD, exit_index), vocabulary.live_rows)
        terms = [term for term in self._term_weights if isinstance(term, TokenTerm)]
        terms = [term for term in terms if not term.follows_deepest or teacher_MV is not None]
        sums = _sums_of(terms, TokenPredictions(logits_MV, labels_M, teacher_MV, vocabulary, objective))
        # Last, because the second run stops as soon as the backward pass has what it needs, so it skips this.
        made_MV = log_probabilities(logits_MV, objective.distillation_temperature, vocabulary.reductions) if teaches else None
        return sums, made_MV


def _sums_of(terms: Iterable[LossTerm[Any]], predictions: TokenPredictions | RowPredictions) -> Sums:
    terms = list(terms)
    sums: Sums = {term.key: term.loss(predictions) for term in terms}
    # After the losses: the recomputation in the backward pass stops when it has what their gradients need, so it counts nothing
    # again, which under tensor parallelism takes an all-reduce.
    for term in terms:
        if term.correct is not None:
            with torch.no_grad():
                sums[term.correct_key] = term.correct(predictions)
    return sums


def _columns(sums: Sums) -> Tensor:
    """Detached sums [C] in float64, in the order of `COLUMNS`; 0 where the exit has no such term."""
    zero = next(iter(sums.values())).new_zeros((), dtype=torch.float64)
    return torch.stack([sums[name].detach().double() if name in sums else zero for name in COLUMNS])


def _without_dead_columns(logits_MV: Tensor, live_rows: int) -> Tensor:
    # Padding rows of the vocabulary must not take part in the softmax: with 97 rows padded to 104 a loss of 8.285 became 8.386.
    if live_rows < logits_MV.shape[1]:
        dead_V = torch.arange(logits_MV.shape[1], device=logits_MV.device) >= live_rows
        return logits_MV.masked_fill(dead_V, float("-inf"))
    return logits_MV
