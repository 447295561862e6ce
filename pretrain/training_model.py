"""The module that DeepSpeed wraps: the encoder's own children under their own names, and a forward that gives the loss.

Letters: N real tokens, B rows, M masked tokens, E exits, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.initialization import draw_parameter
from mose.model.modeling_mose import ModularStarEncoder
from mose.model.sharding import Sharding, patterns_of, sharding_of
from mose.model_config import ModelConfig
from pretrain.loss import Denominators, VocabularyOperations, exit_loss, exit_weights, whole_vocabulary
from pretrain.micro_batch import MicroBatch
from pretrain.parallel.context import ParallelContext


class TrainingModel(nn.Module):
    """Shares the encoder's children, so that parameter names carry no prefix and checkpoints need no renaming."""

    def __init__(self, encoder: ModularStarEncoder, vocabulary: VocabularyOperations):
        """`encoder` may have a padded vocabulary, and parallel layers if the layout asks for them."""
        super().__init__()
        self.starEncoder2 = encoder.starEncoder2
        self.pooler = encoder.pooler
        self.cls = encoder.cls
        self._weights = exit_weights(encoder.config.matryoshka_layers, encoder.config.num_hidden_layers)
        self._vocabulary = vocabulary

    def forward(self, batch: MicroBatch, denominators: Denominators | None) -> tuple[Tensor, Tensor] | list[Tensor]:
        """This micro-batch's share of the global loss, and sums [E, 4] in the order of `loss.COLUMNS`.

        With `denominators` None: the exits' states [N, D] instead, for comparing an exported model.
        """
        states = self.starEncoder2(batch.input_ids_N, batch.positions_N, batch.cu_seqlens, batch.max_length)
        if denominators is None:
            return list(states)
        cls_B = batch.cu_seqlens[1:].long() - 1
        share = states[-1].new_zeros((), dtype=torch.float32)
        all_sums = []
        for index, (state_ND, weight) in enumerate(zip(states, self._weights, strict=True)):
            inputs = (batch.masked_N_indices, batch.labels_M, cls_B, batch.mixed_B, self._vocabulary)
            mlm_sum, icc_sum, sums = exit_loss(state_ND, index, self.pooler, self.cls, *inputs)
            share = share + weight * (mlm_sum / denominators.masked_tokens + icc_sum / denominators.rows)
            all_sums.append(sums)
        return share, torch.stack(all_sums)

    @property
    def universal_checkpoint_info(self) -> dict[str, Any]:
        """What DeepSpeed's universal conversion needs to merge slices; the vocabulary kind counts as column there."""
        return {
            "universal_checkpoint_version": 0.2,
            "tp_replicated_parameter_patterns": patterns_of(Sharding.REPLICATE),
            "parameter_with_row_parallelism_patterns": patterns_of(Sharding.ROW),
        }


def build_training_model(config: ModelConfig, seed: int, dtype: torch.dtype, context: ParallelContext) -> TrainingModel:
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
    return TrainingModel(encoder, vocabulary)


def _apply_tensor_parallelism(
    encoder: ModularStarEncoder, config: ModelConfig, dtype: torch.dtype, context: ParallelContext
) -> VocabularyOperations:
    from pretrain.parallel import tensor

    tensor.apply_tensor_parallelism(encoder, dtype)
    width = config.padded_vocabulary_size // context.layout.tensor_ranks
    live = min(max(config.vocabulary_size - tensor.vocabulary_start(width), 0), width)
    return VocabularyOperations(tensor.vocabulary_cross_entropy, tensor.vocabulary_correct, live)


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
