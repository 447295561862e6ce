"""What a rank does in layout tests: train a tiny model for a few steps in one (DP, TP, micro-batch, ZeRO) cell and report."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from mose.dataset.manifest import read_manifest
from mose.model.model_config import ModelConfig
from mose.model.sharding import Sharding, sharding_of
from mose.schedule import ScheduleConfig, learning_rate
from mose.tokenizer import load_tokenizer
from pretrain.config.run import BatchConfig, DataConfig, Layout, OptimizerConfig, ParallelConfig, PretrainConfig
from pretrain.data.loader import GlobalBatchLoader
from pretrain.parallel.context import ParallelContext
from pretrain.parallel.launch import build_context
from pretrain.step import train_step
from pretrain.storage.local_rows import LocalRows

GLOBAL_ROWS = 8


def tiny_config(
    dataset: Path,
    tensor_ranks: int = 1,
    micro_batch_rows: int = 1,
    zero_stage: int = 1,
    precision: str = "fp32",
    key_value_heads: int = 2,
    dropout: float = 0.0,
    **layers: Any,
) -> PretrainConfig:
    """Four layers of width 32 with exits after 1, 2 and 4; a vocabulary that is no multiple of 512.

    `layers` are fields of the parallel section: sequence_parallel, activation_checkpointing, compile.
    """
    model = ModelConfig(
        vocabulary_size=read_manifest(dataset).vocabulary_size,
        width=32,
        feed_forward_width=64,
        num_layers=4,
        num_heads=4,
        num_key_value_heads=key_value_heads,
        exit_layers=(1, 2, 4),
        max_length=read_manifest(dataset).sequence_length,
        initializer_range=0.08,
        attention_dropout=dropout,
        residual_dropout=dropout,
        embedding_dropout=dropout,
    )
    return PretrainConfig(
        seed=3,
        max_steps=20,
        data=DataConfig(dataset=str(dataset), block_rows=2, window_rows=16),
        model=model,
        batch=BatchConfig(global_rows=GLOBAL_ROWS, micro_batch_rows=micro_batch_rows),
        parallel=ParallelConfig(tensor_parallel_size=tensor_ranks, zero_stage=zero_stage, precision=precision, **layers),
        optimizer=OptimizerConfig(gradient_clipping=0.5, vocabulary_learning_rate_factor=2.0),
        schedule=ScheduleConfig(peak_learning_rate=1e-2, warmup_steps=2, milestones=(), factors=()),
    )


def loader_of(config: PretrainConfig, data_rank: int, data_ranks: int) -> GlobalBatchLoader:
    """The loader of one data rank."""
    from pretrain.train import batch_plan

    dataset = Path(config.data.dataset)
    tokenizer = load_tokenizer(dataset)
    plan = batch_plan(config, tokenizer.special, tokenizer.ordinary_ids(), data_rank, data_ranks)
    return GlobalBatchLoader(LocalRows(dataset, "train"), plan)


def context_of(config: PretrainConfig) -> ParallelContext:
    """Build the groups of this cell in a live process, after forgetting those of the cell before."""
    from deepspeed.utils import groups

    from pretrain.parallel.engine import join_process_group

    join_process_group(120, None)
    groups.mpu = None
    if config.parallel.tensor_parallel_size > 1:
        from megatron.core import parallel_state

        parallel_state.destroy_model_parallel()
    return build_context(Layout.of(config, dist.get_world_size()), torch.device("cpu"))


class GradientRecorder:
    """Stands between the step and the engine, and keeps the first step's gradients just before the update."""

    def __init__(self, engine: Any):
        self._engine = engine
        self.gradients: dict[str, torch.Tensor] = {}

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def backward(self, share: torch.Tensor, last: bool) -> None:
        self._engine.backward(share, last)

    def step(self, rate: float) -> float:
        if not self.gradients:
            from deepspeed.utils import safe_get_full_grad

            self.gradients = {name: safe_get_full_grad(p).detach().clone() for name, p in self._engine.module.named_parameters()}
        return self._engine.step(rate)  # type: ignore[no-any-return]


def whole(name: str, tensor: torch.Tensor, context: ParallelContext, vocabulary_size: int) -> np.ndarray:
    """Put the slices of all tensor ranks together and cut the vocabulary's padding off."""
    kind = sharding_of(name)
    if kind.dimension is not None and context.layout.tensor_ranks > 1:
        parts = [torch.empty_like(tensor) for _ in range(context.layout.tensor_ranks)]
        dist.all_gather(parts, tensor.contiguous(), group=context.mpu.get_tensor_model_parallel_group())
        tensor = torch.cat(parts, dim=kind.dimension)
    return (tensor[:vocabulary_size] if kind is Sharding.VOCABULARY else tensor).float().numpy().copy()


def run_cell(config: PretrainConfig, steps: int) -> dict[str, Any]:
    """Losses, norms and exit sums of `steps` steps, and the whole gradients of the first."""
    engine, context = _engine_of(config)
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


def _engine_of(config: PretrainConfig) -> tuple[Any, ParallelContext]:
    from pretrain.train import build_engine

    context = context_of(config)
    return build_engine(config, context), context


def describe_engine(config: PretrainConfig) -> dict[str, Any]:
    """The classes in use, and the parameters that are cut by the table but whole on this rank."""
    from pretrain.parallel.tensor import megatron_layers

    engine, context = _engine_of(config)
    layers: dict[str, set[str]] = {}
    for name, module in engine.module.named_modules():
        kinds = {kind for kind, megatron in megatron_layers().items() if isinstance(module, megatron)}
        for part in ("q_proj", "k_proj", "v_proj", "o_proj", "mlp.c_fc", "mlp.c_proj", "embed_tokens", "decoder"):
            if name.endswith(part):
                layers.setdefault(part, set()).update(kinds or {type(module).__name__})
    whole_shapes = _whole_shapes(config)
    cut = [name for name, _ in engine.module.named_parameters() if sharding_of(name).dimension is not None]
    parameters = dict(engine.module.named_parameters())
    uncut = [name for name in cut if parameters[name].numel() * context.layout.tensor_ranks != whole_shapes[name].numel()]
    kind = type(engine.deepspeed)
    return {"engine": f"{kind.__module__}.{kind.__name__}", "layers": layers, "whole": uncut, "cut": len(cut)}


def _whole_shapes(config: PretrainConfig) -> dict[str, torch.Size]:
    from mose.model.configuration_mose import ModularStarEncoderConfig
    from mose.model.modeling_mose import ModularStarEncoder

    shape = {**config.model.hugging_face(), "vocab_size": config.model.padded_vocabulary_size}
    with torch.device("meta"):
        model = ModularStarEncoder(ModularStarEncoderConfig(**shape))
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def dropout_drift(config: PretrainConfig) -> dict[str, Any]:
    """Three steps with dropout .1; the largest difference of replicated weights between tensor ranks."""
    model = dataclasses.replace(config.model, attention_dropout=0.1, residual_dropout=0.1, embedding_dropout=0.1)
    config = dataclasses.replace(config, model=model)
    engine, context = _engine_of(config)
    loader = loader_of(config, context.data_rank, context.layout.data_ranks)
    for step in range(3):
        train_step(engine, loader.share(step * GLOBAL_ROWS), 1e-2, config.seed, step, context)
    largest, replicated = 0.0, 0
    for name, parameter in engine.module.named_parameters():
        if sharding_of(name) is Sharding.REPLICATE:
            other = parameter.detach().clone()
            dist.broadcast(other, src=0)
            largest, replicated = max(largest, float((other - parameter).abs().max())), replicated + 1
    parts = [torch.zeros(()) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, torch.tensor(largest))
    return {"largest_difference": max(float(part) for part in parts), "replicated": replicated}


def skip_on_nan(config: PretrainConfig) -> dict[str, Any]:
    """One step in which rank 1's share of the loss is not a number: whether the step was skipped and weights kept."""
    engine, context = _engine_of(config)
    before = [parameter.detach().clone() for parameter in engine.module.parameters()]

    class Poisoned(GradientRecorder):
        def backward(self, share: torch.Tensor, last: bool) -> None:
            super().backward(share * float("nan") if context.rank == 1 else share, last)

        def step(self, rate: float) -> float:
            return engine.step(rate)

    loader = loader_of(config, context.data_rank, context.layout.data_ranks)
    train_step(Poisoned(engine), loader.share(0), 1e-2, config.seed, 0, context)
    after = list(engine.module.parameters())
    return {"skipped": engine.skipped_steps, "unchanged": all(torch.equal(a, b) for a, b in zip(before, after, strict=True))}
