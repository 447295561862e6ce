"""The module that DeepSpeed wraps: the encoder's own children under their own names, and a forward pass that returns the loss.

Letters: N real tokens, D width, E exits, C columns of sums.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.initialization import draw_parameter
from mose.model.model_config import ModelConfig
from mose.model.modeling_mose import ModularStarEncoder, StarEncoder2
from mose.model.sharding import Sharding, sharding_of, used_patterns
from pretrain.config.objective import PAPER, ObjectiveConfig
from pretrain.config.run import ParallelConfig
from pretrain.data.micro_batch import MicroBatch
from pretrain.model.activation_checkpointing import apply_activation_checkpointing
from pretrain.model.compilation import compile_layers
from pretrain.model.dropout import DropoutSeeds
from pretrain.model.loss import MultiExitLoss
from pretrain.model.padded_decoder import TILE, PaddedDecoder
from pretrain.model.terms.term import Denominators
from pretrain.model.terms.vocabulary import VocabularyOperations, VocabularyReductions, whole_vocabulary
from pretrain.parallel.context import ParallelContext
from pretrain.parallel.sequence import padded_tokens


class TrainingModel(nn.Module):
    """Shares the encoder's children, so that parameter names carry no prefix and checkpoints need no renaming."""

    def __init__(
        self,
        encoder: ModularStarEncoder,
        vocabulary: VocabularyOperations,
        objective: ObjectiveConfig = PAPER,
        shards: Callable[[MicroBatch], MicroBatch] | None = None,
        dropout: DropoutSeeds | None = None,
        decoder: PaddedDecoder | None = None,
    ):
        """`encoder` may have a padded vocabulary, and parallel layers if the layout asks for them.

        `shards` makes the number of tokens divide by the tensor ranks, for sequence parallelism; `dropout` has been attached to
        the encoder's trunk, `decoder` to its vocabulary projection.
        """
        super().__init__()
        self.starEncoder2 = encoder.starEncoder2
        self.pooler = encoder.pooler
        self.cls = encoder.cls
        weights = objective.weights_of(encoder.config.exit_layers, encoder.config.num_hidden_layers)
        self._loss = MultiExitLoss(self.pooler, self.cls, vocabulary, objective, weights)
        self._shards = shards
        self._dropout = dropout
        self._decoder = decoder

    def forward(self, batch: MicroBatch, denominators: Denominators | None) -> tuple[Tensor, Tensor] | list[Tensor]:
        """This micro-batch's share of the global loss, and sums [E, C] in the order of `terms.registry.COLUMNS`.

        With `denominators` None: the exits' states [N, D] instead, for comparing an exported model.
        """
        states = self._run_trunk(batch)
        if denominators is None:
            return [state[: batch.input_ids_N.numel()] for state in states]
        if self._decoder is not None:
            self._decoder.renew()
        return self._loss(states, batch, denominators)

    def _run_trunk(self, batch: MicroBatch) -> list[Tensor]:
        if self._dropout is not None and self.training:
            self._dropout.begin()
        seen = self._shards(batch) if self._shards is not None else batch
        states: list[Tensor] = self.starEncoder2(seen.input_ids_N, seen.positions_N, seen.cu_seqlens, seen.max_length)
        return states

    @property
    def universal_checkpoint_info(self) -> dict[str, Any]:
        """Sharding patterns for DeepSpeed's universal conversion, which merges slices; it treats vocabulary slices as columns.

        Only patterns that some parameter matches: the conversion refuses the others.
        """
        names = [name for name, _ in self.named_parameters()]
        return {
            "universal_checkpoint_version": 0.2,
            "tp_replicated_parameter_patterns": used_patterns(names, Sharding.REPLICATE),
            "parameter_with_row_parallelism_patterns": used_patterns(names, Sharding.ROW),
        }


def build_training_model(
    config: ModelConfig,
    parallel: ParallelConfig,
    seed: int,
    dtype: torch.dtype,
    context: ParallelContext,
    objective: ObjectiveConfig = PAPER,
    from_checkpoint: bool = False,
) -> TrainingModel:
    """Build this rank's slice of the model with its initial weights; no rank ever holds a full copy of a cut weight.

    With `from_checkpoint`, nothing is drawn, since a checkpoint sets every weight: at 1B, drawing takes 45 s on each rank.
    """
    shape = ModularStarEncoderConfig(**{**config.hugging_face(), "vocab_size": config.padded_vocabulary_size})
    with torch.device("meta"):
        encoder = ModularStarEncoder(shape)
    vocabulary, shards = whole_vocabulary(config.vocabulary_size), None
    if context.layout.tensor_ranks > 1:
        vocabulary = _apply_tensor_parallelism(encoder, config, parallel, dtype, context)
    if parallel.sequence_parallel:
        shards = _apply_sequence_parallelism(encoder, context)
    encoder.to(dtype).to_empty(device="cpu")
    if from_checkpoint:
        _fill_with_nan(encoder)
    else:
        fill_initial_weights(encoder, config, seed, context)
    if context.layout.tensor_ranks > 1:
        from pretrain.parallel.tensor import mark_parallel_parameters

        mark_parallel_parameters(encoder)
    dropout = _prepare_layers(encoder.starEncoder2, config, parallel, context)
    return TrainingModel(encoder, vocabulary, objective, shards, dropout, _padded_decoder(encoder, parallel, dtype, context))


def _padded_decoder(
    encoder: ModularStarEncoder, parallel: ParallelConfig, dtype: torch.dtype, context: ParallelContext
) -> PaddedDecoder | None:
    """Pad the vocabulary projection for the matrix units of a GPU; not megatron's, nor a weight that ZeRO 3 cuts."""
    decoder = encoder.cls.predictions.decoder
    pays = context.device.type == "cuda" and dtype == torch.bfloat16 and decoder.in_features % TILE
    whole = context.layout.tensor_ranks == 1 and parallel.zero_stage < 3
    return PaddedDecoder(decoder) if pays and whole else None


def _prepare_layers(
    trunk: StarEncoder2, config: ModelConfig, parallel: ParallelConfig, context: ParallelContext
) -> DropoutSeeds | None:
    """Seed dropout, compile, recompute: in this order, so that what is computed again is seeded again and runs compiled."""
    dropout = None
    if config.attention_dropout or config.residual_dropout or config.embedding_dropout:
        dropout = DropoutSeeds(context.tensor_rank, sequence_parallel=parallel.sequence_parallel)
        dropout.attach(trunk)
    if parallel.compile:
        compile_layers(trunk)
    apply_activation_checkpointing(trunk, parallel.activation_checkpointing)
    return dropout


def _apply_tensor_parallelism(
    encoder: ModularStarEncoder, config: ModelConfig, parallel: ParallelConfig, dtype: torch.dtype, context: ParallelContext
) -> VocabularyOperations:
    from pretrain.parallel import tensor

    tensor.apply_tensor_parallelism(encoder, dtype, parallel.sequence_parallel)
    width = config.padded_vocabulary_size // context.layout.tensor_ranks
    live = min(max(config.vocabulary_size - tensor.vocabulary_start(width), 0), width)
    reductions = VocabularyReductions(tensor.maximum_over_ranks, tensor.sum_over_ranks)
    return VocabularyOperations(tensor.vocabulary_cross_entropy, tensor.vocabulary_correct, live, reductions)


def _apply_sequence_parallelism(encoder: ModularStarEncoder, context: ParallelContext) -> Callable[[MicroBatch], MicroBatch]:
    from pretrain.parallel.sequence import apply_sequence_parallelism

    apply_sequence_parallelism(encoder.starEncoder2)
    return functools.partial(padded_tokens, multiple=context.layout.tensor_ranks)


@torch.no_grad()
def _fill_with_nan(encoder: nn.Module) -> None:
    """A weight that the checkpoint fails to set makes the first loss NaN, where zeros or old memory would go unnoticed."""
    for parameter in encoder.parameters():
        parameter.fill_(torch.nan)


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
        full = draw_parameter(name, tuple(shape), config.initializer_range, seed, config.initialization)
        parameter.copy_(cut(full, kind, config.padded_vocabulary_size, context))


def cut(full: Tensor, kind: Sharding, padded_vocabulary_size: int, context: ParallelContext) -> Tensor:
    """This rank's slice of a whole parameter; vocabulary rows are padded with zeros first."""
    if kind is Sharding.VOCABULARY:
        padding = full.new_zeros(padded_vocabulary_size - full.shape[0], *full.shape[1:])
        full = torch.cat((full, padding))
    if kind.dimension is None:
        return full
    return full.chunk(context.layout.tensor_ranks, dim=kind.dimension)[context.tensor_rank]
