"""Bytes of a device in training, by part."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mose.model.cost.shape import EncoderShape
from mose.model.size import encoder_parameters, head_parameters

# AdamW's two moments and a master copy, each float32; ZeRO partitions all three over data ranks from stage 1 on.
OPTIMIZER_BYTES = 12
# Log-probabilities, their gradient and that of the logits, each float32; those of bf16 are gone by then.
LOGIT_BYTES = 12


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    buffers: int
    """Buckets in which gradients are reduced, and weights that ZeRO 3 has gathered."""
    gradients_before: int
    """Of the gradients, those that are there when the last backward pass begins."""
    gradient_copy: int
    """Float32 copy of the gradients of this device's partition, in which the update reads them."""

    @property
    def total(self) -> int:
        """The most that is held at a time: when the last backward pass begins, or in the update, when activations are gone."""
        backward = self.gradients_before + self.activations + self.logits + self.buffers
        return self.weights + self.optimizer + max(backward, self.gradients + self.gradient_copy)


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
    bucket_values: int = 500_000_000
    """Gradients that are reduced together: DeepSpeed allocates as many, however small the model is."""
    overlaps_reduction: bool = False
    """Whether a second bucket fills while the first is reduced."""
    live_values: int = 1_000_000_000
    """Weights that ZeRO 3 keeps gathered (stage3_max_live_parameters)."""
    prefetched_values: int = 50_000_000
    """Weights that it gathers together (stage3_prefetch_bucket_size), and then copies out of one buffer."""


def reduction_fields(deepspeed: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `MemoryLayout` that a run's raw DeepSpeed options decide."""
    zero = deepspeed.get("zero_optimization", {})
    names = {
        "bucket_values": "reduce_bucket_size",
        "overlaps_reduction": "overlap_comm",
        "live_values": "stage3_max_live_parameters",
        "prefetched_values": "stage3_prefetch_bucket_size",
    }
    return {field: zero[name] for field, name in names.items() if name in zero}


def device_memory(shape: EncoderShape, layout: MemoryLayout) -> MemoryEstimate:
    """Bytes that a device needs.

    Logits: masked tokens x vocabulary of one exit at a time, with their gradients, and what terms of the loss add. Fragmentation
    and the buffers of NCCL are not included: allow 10-20 % more.
    """
    size, tensor, stage = layout.number_bytes, layout.tensor_ranks, layout.zero_stage
    parameters = (encoder_parameters(shape, shape.num_hidden_layers) + head_parameters(shape)) // tensor
    tokens = layout.micro_batch_tokens
    logits = int(tokens * layout.masking_share) * layout.padded_vocabulary_size // tensor
    # Megatron's loss works in place on a float32 copy, and gives the gradient in the type of the logits.
    per_logit = LOGIT_BYTES if tensor == 1 else 4 + size
    gradients, before = _gradients(parameters, layout)
    # At stage 3 gradients are reduced in the type in which they add up, and one bucket serves all.
    buckets = 4 if stage == 3 else size * (2 if layout.overlaps_reduction else 1)
    gathered = min(parameters, layout.live_values) + min(parameters, layout.prefetched_values)
    return MemoryEstimate(
        weights=parameters * size // (layout.data_ranks if stage == 3 else 1),
        gradients=gradients,
        optimizer=parameters * OPTIMIZER_BYTES // (layout.zero_ranks if stage >= 1 else 1),
        activations=int(tokens * activation_numbers(shape, layout) * size),
        logits=logits * (per_logit + layout.term_bytes),
        buffers=layout.bucket_values * buckets + (gathered * size if stage == 3 else 0),
        gradients_before=before,
        gradient_copy=parameters * 4 // layout.zero_ranks if stage <= 1 and size < 4 and layout.micro_batches == 1 else 0,
    )


def _gradients(parameters: int, layout: MemoryLayout) -> tuple[int, int]:
    """Bytes of gradients after the last backward pass, and before it.

    At stage 1 those of several micro-batches add up in float32, all of them on each device; those of a single one are reduced
    bucket by bucket, and each device keeps its partition. From stage 2 on a device adds up its partition, in float32.
    """
    if layout.zero_stage <= 1 and layout.micro_batches > 1:
        return parameters * 4, parameters * 4
    if layout.zero_stage <= 1:
        return parameters * layout.number_bytes // layout.zero_ranks, 0
    partition = parameters * 4 // layout.data_ranks
    return partition, partition if layout.zero_stage == 3 or layout.micro_batches > 1 else 0


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
