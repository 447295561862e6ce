"""The module that DeepSpeed wraps: the encoder's own children under their own names, and a forward that gives the loss.

Letters: N real tokens, D width, E exits, C columns of sums.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.initialization import draw_parameter
from mose.model.modeling_mose import ModularStarEncoder
from mose.model.sharding import Sharding, sharding_of, used_patterns
from mose.model_config import ModelConfig
from pretrain.distillation import VocabularyReductions
from pretrain.loss import Denominators, MultiExitLoss, VocabularyOperations, whole_vocabulary
from pretrain.micro_batch import MicroBatch
from pretrain.objective import PAPER, ObjectiveConfig
from pretrain.parallel.context import ParallelContext


class TrainingModel(nn.Module):
    """Shares the encoder's children, so that parameter names carry no prefix and checkpoints need no renaming."""

    def __init__(self, encoder: ModularStarEncoder, vocabulary: VocabularyOperations, objective: ObjectiveConfig = PAPER):
        """`encoder` may have a padded vocabulary, and parallel layers if the layout asks for them."""
        super().__init__()
        self.starEncoder2 = encoder.starEncoder2
        self.pooler = encoder.pooler
        self.cls = encoder.cls
        weights = objective.weights_of(encoder.config.matryoshka_layers, encoder.config.num_hidden_layers)
        self._loss = MultiExitLoss(self.pooler, self.cls, vocabulary, objective, weights)

    def forward(self, batch: MicroBatch, denominators: Denominators | None) -> tuple[Tensor, Tensor] | list[Tensor]:
        """This micro-batch's share of the global loss, and sums [E, C] in the order of `loss.COLUMNS`.

        With `denominators` None: the exits' states [N, D] instead, for comparing an exported model.
        """
        states = self.starEncoder2(batch.input_ids_N, batch.positions_N, batch.cu_seqlens, batch.max_length)
        if denominators is None:
            return list(states)
        return self._loss(states, batch, denominators)

    @property
    def universal_checkpoint_info(self) -> dict[str, Any]:
        """What DeepSpeed's universal conversion needs to merge slices; the vocabulary kind counts as column there.

        Only patterns that some parameter matches: the conversion refuses the others.
        """
        names = [name for name, _ in self.named_parameters()]
        return {
            "universal_checkpoint_version": 0.2,
            "tp_replicated_parameter_patterns": used_patterns(names, Sharding.REPLICATE),
            "parameter_with_row_parallelism_patterns": used_patterns(names, Sharding.ROW),
        }


def build_training_model(
    config: ModelConfig, seed: int, dtype: torch.dtype, context: ParallelContext, objective: ObjectiveConfig = PAPER
) -> TrainingModel:
    """Build this rank's slice of the model with its initial weights; no rank ever holds a full copy of a cut weight."""
    shape = ModularStarEncoderConfig(**{**config.hugging_face(), "vocab_size": config.padded_vocabulary_size})
    with torch.device("meta"):
        encoder = ModularStarEncoder(shape)
    vocabulary = whole_vocabulary(config.vocabulary_size)
    if context.layout.tensor_ranks > 1:
        vocabulary = _apply_tensor_parallelism(encoder, config, dtype, context)
    encoder.to(dtype).to_empty(device="cpu")
    fill_initial_weights(encoder, config, seed, context)
    if context.layout.tensor_ranks > 1:
        from pretrain.parallel.tensor import mark_parallel_parameters

        mark_parallel_parameters(encoder)
    return TrainingModel(encoder, vocabulary, objective)


def _apply_tensor_parallelism(
    encoder: ModularStarEncoder, config: ModelConfig, dtype: torch.dtype, context: ParallelContext
) -> VocabularyOperations:
    from pretrain.parallel import tensor

    tensor.apply_tensor_parallelism(encoder, dtype)
    width = config.padded_vocabulary_size // context.layout.tensor_ranks
    live = min(max(config.vocabulary_size - tensor.vocabulary_start(width), 0), width)
    reductions = VocabularyReductions(tensor.maximum_over_ranks, tensor.sum_over_ranks)
    return VocabularyOperations(tensor.vocabulary_cross_entropy, tensor.vocabulary_correct, live, reductions)


@torch.no_grad()
def fill_initial_weights(encoder: nn.Module, config: ModelConfig, seed: int, context: ParallelContext) -> None:
    """Draw each parameter whole from its name and the seed, keep this rank's slice: the same weights in every layout."""
    for name, parameter in encoder.named_parameters():
        kind = sharding_of(name)
        shape = list(parameter.shape)
        if kind.dimension is not None:
            shape[kind.dimension] *= context.layout.tensor_ranks
        if kind is Sharding.VOCABULARY:
            shape[0] = config.vocabulary_size
        full = draw_parameter(name, tuple(shape), config.initializer_range, seed)
        parameter.copy_(cut(full, kind, config.padded_vocabulary_size, context))


def cut(full: Tensor, kind: Sharding, padded_vocabulary_size: int, context: ParallelContext) -> Tensor:
    """This rank's slice of a whole parameter; vocabulary rows are padded with zeros first."""
    if kind is Sharding.VOCABULARY:
        padding = full.new_zeros(padded_vocabulary_size - full.shape[0], *full.shape[1:])
        full = torch.cat((full, padding))
    if kind.dimension is None:
        return full
    return full.chunk(context.layout.tensor_ranks, dim=kind.dimension)[context.tensor_rank]
