"""What a rank does in layout tests: train a tiny model for a few steps in one (DP, TP, micro-batch, ZeRO) cell and report."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from mose.manifest import read_manifest
from mose.model.sharding import Sharding, sharding_of
from mose.model_config import ModelConfig
from mose.schedule import ScheduleConfig, learning_rate
from mose.tokenizer import load_tokenizer
from pretrain.config import BatchConfig, DataConfig, Layout, OptimizerConfig, ParallelConfig, PretrainConfig
from pretrain.data import BatchPlan, GlobalBatchLoader, PackedRows
from pretrain.parallel.context import ParallelContext, build_context
from pretrain.step import train_step

GLOBAL_ROWS = 8


def tiny_config(
    dataset: Path, tensor_ranks: int = 1, micro_batch_rows: int = 1, zero_stage: int = 1, precision: str = "fp32"
) -> PretrainConfig:
    """Four layers of width 32 with exits after 1, 2 and 4; dropout 0; a vocabulary that is no multiple of 512."""
    model = ModelConfig(
        vocabulary_size=read_manifest(dataset).vocabulary_size,
        width=32,
        feed_forward_width=64,
        num_layers=4,
        num_heads=4,
        num_key_value_heads=2,
        exit_layers=(1, 2, 4),
        max_length=read_manifest(dataset).sequence_length,
        initializer_range=0.08,
        attention_dropout=0.0,
        residual_dropout=0.0,
        embedding_dropout=0.0,
    )
    return PretrainConfig(
        seed=3,
        max_steps=20,
        data=DataConfig(dataset=str(dataset), block_rows=2, window_rows=16),
        model=model,
        batch=BatchConfig(global_rows=GLOBAL_ROWS, micro_batch_rows=micro_batch_rows),
        parallel=ParallelConfig(tensor_parallel_size=tensor_ranks, zero_stage=zero_stage, precision=precision),
        optimizer=OptimizerConfig(gradient_clipping=0.5),
        schedule=ScheduleConfig(peak_learning_rate=1e-2, warmup_steps=2, milestones=(), factors=()),
    )


def loader_of(config: PretrainConfig, data_rank: int, data_ranks: int) -> GlobalBatchLoader:
    """The loader of one data rank."""
    dataset = Path(config.data.dataset)
    tokenizer = load_tokenizer(dataset)
    plan = BatchPlan(
        seed=config.seed,
        global_batch_rows=config.batch.global_rows,
        micro_batch_rows=config.batch.micro_batch_rows,
        special=tokenizer.special,
        ordinary_ids=tokenizer.ordinary_ids(),
        data_rank=data_rank,
        data_ranks=data_ranks,
        masked_share=config.data.masking_share,
        block_rows=config.data.block_rows,
        window_rows=config.data.window_rows,
    )
    return GlobalBatchLoader(PackedRows(dataset, "train"), plan)


def context_of(config: PretrainConfig) -> ParallelContext:
    """Build the groups of this cell in a live process, after forgetting those of the cell before."""
    from deepspeed.utils import groups

    from pretrain.parallel.engine import join_process_group

    join_process_group(120)
    groups.mpu = None
    if config.parallel.tensor_parallel_size > 1:
        from pretrain.parallel.tensor import destroy_tensor_groups

        destroy_tensor_groups()
    return build_context(Layout.of(config, dist.get_world_size()), torch.device("cpu"))


class GradientRecorder:
    """Stands between the step and the engine, and keeps the first step's gradients just before the update."""

    def __init__(self, engine: Any):
        self._engine = engine
        self.gradients: dict[str, torch.Tensor] = {}

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def backward(self, share: torch.Tensor) -> None:
        self._engine.backward(share)

    def step(self, rate: float) -> float | None:
        if not self.gradients and self._engine.deepspeed.is_gradient_accumulation_boundary():
            from deepspeed.utils import safe_get_full_grad

            self.gradients = {name: safe_get_full_grad(p).detach().clone() for name, p in self._engine.module.named_parameters()}
        return self._engine.step(rate)  # type: ignore[no-any-return]


def whole(name: str, tensor: torch.Tensor, context: ParallelContext, vocabulary_size: int) -> np.ndarray:
    """Put the slices of all tensor ranks together and cut the vocabulary's padding off."""
    kind = sharding_of(name)
    if kind.dimension is not None and context.layout.tensor_ranks > 1:
        parts = [torch.empty_like(tensor) for _ in range(context.layout.tensor_ranks)]
        dist.all_gather(parts, tensor.contiguous(), group=context.tensor_group)
        tensor = torch.cat(parts, dim=kind.dimension)
    return (tensor[:vocabulary_size] if kind is Sharding.VOCABULARY else tensor).float().numpy().copy()


def run_cell(config: PretrainConfig, steps: int) -> dict[str, Any]:
    """Losses, norms and exit sums of `steps` steps, and the whole gradients of the first."""
    from pretrain.parallel.engine import Engine
    from pretrain.training_model import build_training_model

    context = context_of(config)
    dtype = torch.bfloat16 if config.parallel.precision == "bf16" else torch.float32
    engine = Engine(build_training_model(config.model, config.seed, dtype, context), config, context)
    recorder = GradientRecorder(engine)
    loader = loader_of(config, context.data_rank, context.layout.data_ranks)
    results = []
    for step in range(steps):
        batches = loader.share(step * config.batch.global_rows)
        results.append(train_step(recorder, batches, learning_rate(step, config.schedule), config.seed, step, context))
    vocabulary = config.model.vocabulary_size
    return {
        "losses": [result.loss for result in results],
        "norms": [result.gradient_norm for result in results],
        "sums": [result.sums.numpy() for result in results],
        "gradients": {name: whole(name, value, context, vocabulary) for name, value in recorder.gradients.items()},
    }


def replace_parallel(config: PretrainConfig, **changes: Any) -> PretrainConfig:
    """The same config in another layout."""
    return dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, **changes))
