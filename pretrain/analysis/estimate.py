"""Numbers that follow from a config alone: parameters, tokens per step, epochs, memory per device; allocates nothing."""

from collections.abc import Sequence

from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.cost.memory import MemoryEstimate, MemoryLayout, device_memory, reduction_fields
from mose.model.cost.shape import EncoderShape
from mose.model.size import encoder_parameters, flops_per_row, head_parameters
from pretrain.config.run import Layout, PretrainConfig
from pretrain.model.terms.registry import terms_of
from pretrain.storage.run_data import DatasetSource

GIB = 1 << 30


def shape_of(config: PretrainConfig) -> ModularStarEncoderConfig:
    """The Hugging Face configuration that the counting functions take."""
    return ModularStarEncoderConfig(**config.model.hugging_face())


def estimate_memory(config: PretrainConfig, layout: Layout) -> MemoryEstimate:
    """Bytes that a device needs, by `mose.model.cost.memory`."""
    return device_memory(EncoderShape.of(config.model), memory_layout(config, layout))


def memory_layout(config: PretrainConfig, layout: Layout) -> MemoryLayout:
    """What of a run decides the memory of a device."""
    parallel = config.parallel
    return MemoryLayout(
        **reduction_fields(config.deepspeed),
        tensor_ranks=layout.tensor_ranks,
        data_ranks=layout.data_ranks,
        zero_ranks=layout.zero_ranks,
        zero_stage=parallel.zero_stage,
        micro_batches=layout.micro_batches,
        micro_batch_tokens=config.micro_batch_tokens,
        padded_vocabulary_size=config.model.padded_vocabulary_size,
        number_bytes=2 if parallel.precision == "bf16" else 4,
        masking_share=config.data.masking_share,
        sequence_parallel=parallel.sequence_parallel,
        activation_checkpointing=parallel.activation_checkpointing,
        term_bytes=sum(term.bytes_per_logit for term in terms_of(config.objective)),
    )


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
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "total")
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
