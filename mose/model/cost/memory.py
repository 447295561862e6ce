"""Bytes of a device in training, by part."""

from dataclasses import dataclass

from mose.model.cost.shape import EncoderShape
from mose.model.size import encoder_parameters, head_parameters

# AdamW's two moments and a master copy, each float32; ZeRO partitions all three over data ranks from stage 1 on.
OPTIMIZER_BYTES = 12


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


@dataclass(frozen=True)
class MemoryLayout:
    """What decides the memory of a device beside the model's shape."""

    tensor_ranks: int
    data_ranks: int
    zero_ranks: int
    """Data ranks over which ZeRO partitions."""
    zero_stage: int
    micro_batches: int
    micro_batch_tokens: int
    padded_vocabulary_size: int
    number_bytes: int = 2
    """Bytes of a weight: 2 in bf16, 4 in fp32."""
    masking_share: float = 0.15
    sequence_parallel: bool = False
    activation_checkpointing: str = "none"
    term_bytes: int = 0
    """Bytes per logit that terms of the loss add, such as a teacher's."""


def device_memory(shape: EncoderShape, layout: MemoryLayout) -> MemoryEstimate:
    """Bytes that a device needs.

    Logits: masked tokens x vocabulary of one exit at a time, with their gradients, both also in float32, and what terms of the
    loss add. Fragmentation and communication buffers are not included: allow 10-20 % more.
    """
    size, tensor, data, stage = layout.number_bytes, layout.tensor_ranks, layout.data_ranks, layout.zero_stage
    parameters = (encoder_parameters(shape, shape.num_hidden_layers) + head_parameters(shape)) // tensor
    tokens = layout.micro_batch_tokens
    logits = int(tokens * layout.masking_share) * layout.padded_vocabulary_size // tensor
    return MemoryEstimate(
        weights=parameters * size // (data if stage == 3 else 1),
        # Several micro-batches add up in float32.
        gradients=parameters * (4 if layout.micro_batches > 1 else size) // (data if stage >= 2 else 1),
        optimizer=parameters * OPTIMIZER_BYTES // (layout.zero_ranks if stage >= 1 else 1),
        activations=int(tokens * activation_numbers(shape, layout) * size),
        logits=logits * (2 * size + 8 + layout.term_bytes),
    )


def activation_numbers(shape: EncoderShape, layout: MemoryLayout) -> float:
    """Values that a device keeps for the backward pass per token of a micro-batch, in all layers.

    One layer keeps about 8 D + 4 KV + 2 F: inputs and outputs of both norms and what the second half adds to (5 D, which
    tensor parallelism does not divide); queries, keys and values before and after rotation, the attention output and both
    feed-forward states, which it does. Sequence parallelism divides the rest, except the two norm outputs, which are gathered.
    Selective checkpointing keeps one feed-forward state; full keeps each layer's input, and all values of one layer at a time.
    """
    width, feed_forward, tensor_ranks = shape.hidden_size, shape.intermediate_size, layout.tensor_ranks
    shards = tensor_ranks if layout.sequence_parallel else 1
    between = 2 * width + 3 * width / shards
    inside = 3 * width + 4 * shape.num_key_value_heads * shape.head_dim + 2 * feed_forward
    layers = shape.num_hidden_layers
    if layout.activation_checkpointing == "full":
        return layers * width / shards + between + inside / tensor_ranks
    kept = feed_forward if layout.activation_checkpointing == "selective" else 0
    return layers * (between + (inside - kept) / tensor_ranks)
