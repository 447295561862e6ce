"""What one rank of a pretended 512 does in tests of collectives: one step on torch's fake back end, with every call recorded."""

import dataclasses
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from mose.schedule import learning_rate
from pretrain.config.run import BatchConfig, Layout, PretrainConfig
from tests.pretrain.cells import loader_of, tiny_config

RANKS = 512
RECORDED = (
    "all_reduce",
    "reduce",
    "broadcast",
    "all_gather",
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
    "all_to_all_single",
    "barrier",
    "new_group",
)


@dataclass(frozen=True)
class Call:
    """One collective as a rank issued it; `group` holds the first and last rank of its group and their number."""

    operation: str
    group: tuple[int, int, int]
    dtype: str
    num_values: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor that it is given."""
        return self.num_values * (getattr(torch, self.dtype).itemsize if self.dtype else 0)


@dataclass(frozen=True)
class Trace:
    """A rank's calls while the engine is built and in one step, and sizes for comparison."""

    start: list[Call]
    step: list[Call]
    parameters: int
    token_values: list[int]
    """Per micro-batch: values of a hidden state [N, D]."""


@dataclass(frozen=True)
class Grid:
    """How the 512 ranks are laid out."""

    tensor_ranks: int = 1
    partition_ranks: int = 0


def config_of(dataset: Path, grid: Grid) -> PretrainConfig:
    """The tiny run at 512 ranks: a row per rank, so several micro-batches per data rank under tensor parallelism."""
    partition = {"zero_partition_ranks": grid.partition_ranks}
    config = tiny_config(dataset, grid.tensor_ranks, key_value_heads=4, precision="bf16", **partition)
    overlapped = {"zero_optimization": {"overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": 20_000}}
    return dataclasses.replace(config, batch=BatchConfig(global_rows=RANKS, micro_batch_rows=1), deepspeed=overlapped)


def trace_rank(rank: int, grid: Grid, dataset: Path, before: Callable[[], None] | None = None) -> Trace:
    """Build the engine of `rank` and run one step; nothing is sent, and reductions leave their argument as it is."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from pretrain.parallel.engine import join_process_group
    from pretrain.parallel.launch import ALONE, build_context
    from pretrain.step import train_step
    from pretrain.train import build_engine

    os.environ.update(ALONE | {"RANK": str(rank), "WORLD_SIZE": str(RANKS)})
    if before is not None:
        before()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=RANKS)
    calls: list[Call] = []
    # Before DeepSpeed starts: it keeps torch's functions of that moment for its gathers and scatters.
    for name in RECORDED:
        setattr(dist, name, _recorded(name, calls))
    join_process_group(10)
    config = config_of(dataset, grid)
    context = build_context(Layout.of(config, RANKS), torch.device("cpu"))
    engine = build_engine(config, context)
    start = list(calls)
    calls.clear()
    batches = loader_of(config, context.data_rank, context.layout.data_ranks).share(0)
    train_step(engine, batches, learning_rate(0, config.schedule), config.seed, 0, context)
    values = [batch.num_tokens * config.model.width for batch in batches]
    return Trace(start, list(calls), sum(parameter.numel() for parameter in engine.module.parameters()), values)


def _recorded(name: str, calls: list[Call]) -> Callable[..., Any]:
    original = getattr(dist, name)
    signature = inspect.signature(original)

    def call(*arguments: Any, **named: Any) -> Any:
        given = signature.bind(*arguments, **named).arguments
        ranks = given.get("ranks") or dist.get_process_group_ranks(given.get("group") or dist.group.WORLD)
        tensors = [value for value in given.values() if isinstance(value, Tensor)]
        dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else ""
        # Of a gather the whole result, which comes first.
        calls.append(Call(name, (ranks[0], ranks[-1], len(ranks)), dtype, tensors[0].numel() if tensors else 0))
        return original(*arguments, **named)

    return call
