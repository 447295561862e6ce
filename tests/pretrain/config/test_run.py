"""Covers the run's config: what each section refuses, what `resolve()` fills in, how ranks divide the batch."""

import dataclasses
from typing import Any

import pytest

from mose.errors import MoseError
from mose.model.model_config import ModelConfig
from mose.schedule import ScheduleConfig
from pretrain.config.run import BatchConfig, DataConfig, IntervalConfig, Layout, OptimizerConfig, ParallelConfig, PretrainConfig


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (ParallelConfig, {"tensor_parallel_size": 3}, "parallel.tensor_parallel_size: 3, expected 1, 2 or 4"),
        (ParallelConfig, {"zero_stage": 4}, "parallel.zero_stage: 4"),
        (ParallelConfig, {"precision": "fp8"}, "parallel.precision: 'fp8'"),
        (
            ParallelConfig,
            {"precision": "fp32", "gradient_communication": "bf16"},
            "parallel.gradient_communication: 'bf16', expected",
        ),
        (ParallelConfig, {"precision": "bf16", "zero_stage": 0}, "steps once with empty gradients and clips by a wrong norm"),
        (ParallelConfig, {"sequence_parallel": True}, "sequence_parallel: true without tensor parallelism, expected"),
        (ParallelConfig, {"activation_checkpointing": "half"}, "parallel.activation_checkpointing: 'half', expected one of"),
        (ParallelConfig, {"compile": True, "activation_checkpointing": "selective"}, "the compiler chooses itself which"),
        (ParallelConfig, {"compile": True, "zero_stage": 3}, "parallel.compile: true with ZeRO 3: "),
        (ParallelConfig, {"threads_per_rank": 0}, "parallel.threads_per_rank: 0"),
        (BatchConfig, {"global_rows": 0}, "batch.global_rows: 0"),
        (BatchConfig, {"micro_batch_tokens": -1}, "batch.micro_batch_tokens: -1, expected 0 or more"),
        (DataConfig, {"masking_share": 1.0}, "data.masking_share: 1.0"),
        (OptimizerConfig, {"gradient_clipping": -1.0}, "optimizer.gradient_clipping: -1.0"),
        (OptimizerConfig, {"vocabulary_learning_rate_factor": 0.0}, "optimizer.vocabulary_learning_rate_factor: 0.0"),
        (IntervalConfig, {"keep_last_checkpoints": 0}, "intervals.keep_last_checkpoints: 0"),
    ],
)
def test_sections_refuse_wrong_values(section: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(MoseError) as raised:
        section(**values)
    assert message in str(raised.value)


def test_heads_must_divide_by_the_tensor_parallel_size() -> None:
    model = ModelConfig(width=48, num_heads=6, num_key_value_heads=2, num_layers=2, exit_layers=(2,))
    with pytest.raises(MoseError, match="tensor_parallel_size: 4 does not divide model.num_heads 6"):
        PretrainConfig(model=model, parallel=ParallelConfig(tensor_parallel_size=4))
    model = dataclasses.replace(model, num_heads=8, num_key_value_heads=2)
    with pytest.raises(MoseError, match="4 does not divide model.num_key_value_heads 2: each rank needs whole"):
        PretrainConfig(model=model, parallel=ParallelConfig(tensor_parallel_size=4))


def test_resolve_fills_in_the_vocabulary_and_maps_zero_0_to_1() -> None:
    config = PretrainConfig(model=ModelConfig(vocabulary_size=0), parallel=ParallelConfig(zero_stage=0, precision="fp32"))
    resolved = config.resolve(321)
    assert (resolved.model.vocabulary_size, resolved.parallel.zero_stage) == (321, 1)
    assert (config.model.vocabulary_size, config.parallel.zero_stage) == (0, 0)
    with pytest.raises(MoseError, match="model.vocabulary_size: 10 is smaller"):
        PretrainConfig(model=ModelConfig(vocabulary_size=10)).resolve(321)


def test_layout_divides_the_batch() -> None:
    config = PretrainConfig(batch=BatchConfig(2048, 4), parallel=ParallelConfig(tensor_parallel_size=4))
    assert Layout.of(config, 512) == Layout(world_size=512, tensor_ranks=4, data_ranks=128, micro_batches=4)
    with pytest.raises(MoseError, match="tensor_parallel_size: 4 does not divide the 6 ranks"):
        Layout.of(config, 6)
    assert Layout.of(config, 12) == Layout(world_size=12, tensor_ranks=4, data_ranks=3, micro_batches=171)
    with pytest.raises(MoseError, match="batch.global_rows: 2048 rows for 2049 data ranks"):
        Layout.of(config, 4 * 2049)


def test_micro_batches_follow_from_the_tokens_that_memory_is_planned_for() -> None:
    assert PretrainConfig(batch=BatchConfig(2048, 4)).micro_batch_tokens == 4 * 2048
    config = PretrainConfig(batch=BatchConfig(2048, 4, micro_batch_tokens=5000))
    assert config.micro_batch_tokens == 5000
    assert Layout.of(config, 512).micro_batches == 2


def test_resolve_fills_in_deviation_and_peak_by_width_and_leaves_the_papers() -> None:
    small = ModelConfig(width=64, num_heads=4, num_key_value_heads=2, num_layers=2, exit_layers=(2,), initializer_range=0.0)
    config = PretrainConfig(model=small, schedule=ScheduleConfig(peak_learning_rate=0.0)).resolve(321)
    assert config.model.initializer_range == pytest.approx(4 * 0.018042)
    assert config.schedule.peak_learning_rate == pytest.approx(4 * 6.24e-4)
    assert small.hugging_face()["initializer_range"] == config.model.initializer_range
    paper = PretrainConfig().resolve(49152)
    assert (paper.model, paper.schedule) == (ModelConfig(), ScheduleConfig())
    by_width = PretrainConfig(model=ModelConfig(initializer_range=0.0), schedule=ScheduleConfig(peak_learning_rate=0.0))
    assert by_width.resolve(49152) == paper
