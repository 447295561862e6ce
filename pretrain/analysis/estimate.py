"""Numbers that follow from a config alone: parameters, tokens per step, epochs, memory per device; allocates nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.size import encoder_parameters, flops_per_row, head_parameters
from pretrain.config.run import Layout, PretrainConfig
from pretrain.model.terms.registry import terms_of
from pretrain.storage.run_data import DatasetSource

GIB = 1 << 30
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


def shape_of(config: PretrainConfig) -> ModularStarEncoderConfig:
    """The Hugging Face configuration that the counting functions take."""
    return ModularStarEncoderConfig(**config.model.hugging_face())


def estimate_memory(config: PretrainConfig, layout: Layout) -> MemoryEstimate:
    """Bytes that a device needs.

    Logits: masked tokens x vocabulary of one exit at a time, with their gradients, both also in float32, and what terms of the
    loss add, such as a teacher's in float32. Fragmentation and communication buffers are not included: allow 10-20 % more.
    """
    shape, stage, tensor, data = shape_of(config), config.parallel.zero_stage, layout.tensor_ranks, layout.data_ranks
    size = 2 if config.parallel.precision == "bf16" else 4
    deepest = config.model.exit_layers[-1]
    parameters = (encoder_parameters(shape, deepest) + head_parameters(shape)) // tensor
    tokens = config.micro_batch_tokens
    masked = int(tokens * config.data.masking_share)
    term_bytes = sum(term.bytes_per_logit for term in terms_of(config.objective))
    return MemoryEstimate(
        weights=parameters * size // (data if stage == 3 else 1),
        # Several micro-batches add up in float32.
        gradients=parameters * (4 if layout.micro_batches > 1 else size) // (data if stage >= 2 else 1),
        optimizer=parameters * OPTIMIZER_BYTES // (layout.zero_ranks if stage >= 1 else 1),
        activations=int(tokens * activation_numbers(config, tensor) * size),
        logits=masked * config.model.padded_vocabulary_size // tensor * (2 * size + 8 + term_bytes),
    )


def activation_numbers(config: PretrainConfig, tensor_ranks: int) -> float:
    """Values that a device keeps for the backward pass per token of a micro-batch, in all layers.

    One layer keeps about 8 D + 4 KV + 2 F: inputs and outputs of both norms and what the second half adds to (5 D, which
    tensor parallelism does not divide); queries, keys and values before and after rotation, the attention output and both
    feed-forward states, which it does. Sequence parallelism divides the rest, except the two norm outputs, which are gathered.
    Selective checkpointing keeps one feed-forward state; full keeps each layer's input, and all values of one layer at a time.
    """
    shape, parallel = shape_of(config), config.parallel
    width, feed_forward = shape.hidden_size, shape.intermediate_size
    shards = tensor_ranks if parallel.sequence_parallel else 1
    between = 2 * width + 3 * width / shards
    inside = 3 * width + 4 * shape.num_key_value_heads * shape.head_dim + 2 * feed_forward
    layers = config.model.num_layers
    if parallel.activation_checkpointing == "full":
        return layers * width / shards + between + inside / tensor_ranks
    kept = feed_forward if parallel.activation_checkpointing == "selective" else 0
    return layers * (between + (inside - kept) / tensor_ranks)


def derived_numbers(config: PretrainConfig, layout: Layout, sources: Sequence[DatasetSource]) -> list[tuple[str, str]]:
    """Label and value of every line of `--dry-run`; lines about data only where `sources` are given."""
    shape, batch, memory = shape_of(config), config.batch, estimate_memory(config, layout)
    deepest, length = config.model.exit_layers[-1], config.model.max_length
    encoder, heads = encoder_parameters(shape, deepest), head_parameters(shape)
    slots, weights = batch.global_rows * length, config.objective.weights_of(config.model.exit_layers, deepest)
    lines = [
        ("parameters", f"{encoder + heads:,} ({encoder:,} encoder, {heads:,} heads)"),
        (
            "parameters at each exit",
            ", ".join(f"{layer}: {encoder_parameters(shape, layer) / 1e6:,.1f} M" for layer in config.model.exit_layers),
        ),
        (
            "vocabulary rows",
            f"{config.model.vocabulary_size:,}, padded to {config.model.padded_vocabulary_size:,} while training",
        ),
        (
            "ranks",
            f"{layout.world_size} = {layout.data_ranks} data x {layout.tensor_ranks} tensor, ZeRO {config.parallel.zero_stage}",
        ),
        ("token slots per step", f"{slots:,} ({batch.global_rows:,} rows x {length:,})"),
        (
            "accumulation steps",
            f"{layout.micro_batches} micro-batches of {config.micro_batch_tokens:,} tokens per data rank, fewer of short rows",
        ),
        (
            "exit weights",
            ", ".join(f"{layer}: {weight:.3f}" for layer, weight in zip(config.model.exit_layers, weights, strict=True)),
        ),
        ("steps", f"{config.max_steps:,} = {config.max_steps * slots / 1e12:.3f}T slots"),
        (
            "forward and backward",
            f"{3 * flops_per_row(shape, deepest, length) / length / 1e9:.2f} GFLOP per token in the encoder",
        ),
    ]
    lines += _data_numbers(config, sources)
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "total")
    return lines + [(f"memory per device: {name}", f"{getattr(memory, name) / GIB:.2f} GiB (estimate)") for name in parts]


def _data_numbers(config: PretrainConfig, sources: Sequence[DatasetSource]) -> list[tuple[str, str]]:
    """Rows of each data set, and the number of epochs over it."""
    split, total, lines = config.data.split, sum(source.weight for source in sources), []
    for source in sources:
        share = source.weight / total
        name, note = (f" {source.name}", f", {share:.1%} of the run's rows") if config.data.mixture else ("", "")
        rows, step_rows = source.manifest.rows(split), config.batch.global_rows * share
        epochs = config.max_steps * step_rows / max(rows, 1)
        lines += [
            (f"data set{name}", f"{rows:,} rows, {source.manifest.tokens(split):,} real tokens{note}"),
            (f"steps per epoch{name}", f"{rows / step_rows:,.1f} ({epochs:.2f} epochs in all)"),
        ]
    return lines
