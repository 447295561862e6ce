"""The memory of a device as a plan counts it against what ranks hold: every tensor of a training step, by part. CPU.

Rank 0 of four trains a small model for two steps in each layout, on torch's fake back end, which sends nothing: what a rank
allocates does not depend on it. Measured is what the second step holds, from the storages
of all live tensors after each operation: weights and optimizer between steps; activations when the last backward pass begins;
logits, buffers and the total at their peak; gradients when the update begins. Left out: temporaries of AdamW, which is fused on
GPUs. The plan is `mose.model.cost.memory`, for rows that are all full.

python -m benchmarks.memory_plan [--output benchmarks/results/FILE.json]
"""

import argparse
import datetime
import math
import os
import platform
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, UntypedStorage, nn
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.activation_checkpointing import ROWS, SLOTS, made_batch
from mose.files.atomic_file import write_json
from mose.model.model_config import ModelConfig
from pretrain.analysis.estimate import estimate_memory
from pretrain.config.run import BatchConfig, Layout, ParallelConfig, PretrainConfig
from pretrain.parallel.context import ParallelContext
from pretrain.parallel.stage import BACKWARD, FORWARD, UPDATE
from pretrain.step import Guard, train_step
from tests.pretrain.forked import call_forked

RANKS = 4
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "total")
# In proportion to the model, as the 1B configs have them.
BUCKET, LIVE = 1_000_000, 8_000_000


@dataclass(frozen=True)
class Cell:
    """One layout."""

    zero_stage: int = 1
    tensor_ranks: int = 1
    micro_batches: int = 1
    precision: str = "bf16"
    checkpointing: str = "none"
    dropout: float = 0.0


CELLS = (
    Cell(1),
    Cell(2),
    Cell(3),
    Cell(1, micro_batches=2),
    Cell(2, micro_batches=2),
    Cell(3, micro_batches=2),
    Cell(1, tensor_ranks=2),
    Cell(2, tensor_ranks=2),
    Cell(3, tensor_ranks=2),
    Cell(1, checkpointing="selective"),
    Cell(1, checkpointing="full"),
    Cell(2, tensor_ranks=2, checkpointing="full"),
    Cell(1, dropout=0.1),
    Cell(0, precision="fp32"),
)
# 19 million parameters, with the 1B model's wide feed-forward layers.
MODEL = ModelConfig(
    vocabulary_size=8192,
    width=256,
    feed_forward_width=3072,
    num_layers=8,
    num_heads=4,
    num_key_value_heads=2,
    exit_layers=(2, 4, 8),
    max_length=SLOTS,
)


class LiveTensors(TorchDispatchMode):
    """Follows every storage that an operation makes or returns; it is asked after each of them how much is held."""

    def __init__(self, logits: tuple[int, int]):
        """`logits` is the shape of one exit's."""
        super().__init__()
        # Tensor parallelism gives them a dimension more.
        self.phase, self._logits = "", math.prod(logits)
        self.peaks: dict[str, dict[str, int]] = {}
        self._known: dict[int, tuple[weakref.ref[UntypedStorage], tuple[int, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                known = self._known.get(id(storage))
                if known is None or known[0]() is not storage:
                    self._known[id(storage)] = weakref.ref(storage), tuple(tensor.shape)
        self._note(self.phase)
        return out

    def _note(self, phase: str) -> None:
        held = {"total": 0, "logits": 0, "buckets": 0}
        for storage, shape in self.storages():
            held["total"] += storage.nbytes()
            held["logits"] += storage.nbytes() if math.prod(shape) == self._logits else 0
            held["buckets"] += storage.nbytes() if shape == (BUCKET,) else 0
        before = self.peaks.setdefault(phase, dict(held))
        self.peaks[phase] = {name: max(value, before[name]) for name, value in held.items()}

    def storages(self) -> Iterator[tuple[UntypedStorage, tuple[int, ...]]]:
        """Live storages, each with the shape of the tensor that it was first seen with."""
        for key, (reference, shape) in list(self._known.items()):
            storage = reference()
            if storage is None:
                del self._known[key]
            else:
                yield storage, shape

    def held(self) -> int:
        """Bytes of all live storages."""
        return sum(storage.nbytes() for storage, _ in self.storages())


def bytes_of(tensors: list[Tensor]) -> int:
    """Bytes of the storages of these tensors, each once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def config_of(cell: Cell, model: ModelConfig = MODEL, ranks: int = RANKS) -> PretrainConfig:
    """The run of a cell."""
    dropouts = {f"{name}_dropout": cell.dropout for name in ("residual", "embedding")}
    rows = BatchConfig(ranks // cell.tensor_ranks * ROWS * cell.micro_batches, ROWS)
    parallel = ParallelConfig(
        tensor_parallel_size=cell.tensor_ranks,
        zero_stage=cell.zero_stage,
        precision=cell.precision,
        activation_checkpointing=cell.checkpointing,
        gradient_communication="fp32",
    )
    zero = {"reduce_bucket_size": BUCKET, "overlap_comm": True, "stage3_max_live_parameters": LIVE}
    zero |= {"stage3_prefetch_bucket_size": BUCKET, "stage3_max_reuse_distance": LIVE}
    fields = {name: getattr(model, name) for name in vars(model)} | dropouts | {"attention_dropout": 0.0}
    config = PretrainConfig(model=ModelConfig(**fields), batch=rows, parallel=parallel, deepspeed={"zero_optimization": zero})
    return config.resolve(model.vocabulary_size)


def measure_rank(cell: Cell, config: PretrainConfig, context: ParallelContext) -> dict[str, int]:
    """Bytes that this rank holds, by part."""
    from pretrain.train import build_engine

    masked = int(config.data.masking_share * ROWS * SLOTS)
    live = LiveTensors((masked, config.model.padded_vocabulary_size // cell.tensor_ranks))
    batches = [made_batch(config.model.vocabulary_size) for _ in range(cell.micro_batches)]
    seen: dict[str, int] = {}
    with live:
        engine = build_engine(config, context)
        for step in range(2):

            def enter(stage: str, left: int, step: int = step) -> None:
                live.phase = f"{stage} {step}"
                if stage == FORWARD:
                    seen["before"] = live.held()
                elif stage == BACKWARD and not left:
                    seen["kept"], seen["gathered"] = live.held(), _gathered(engine.module)
                elif stage == UPDATE:
                    seen["update"] = live.held()

            train_step(engine, batches, 1e-4, 0, step, context, guard=Guard(enter=enter))
        return _by_part(seen, live, engine)


def _gathered(module: nn.Module) -> int:
    """Bytes of the weights that ZeRO 3 has put together at this moment."""
    return bytes_of([parameter.data for parameter in module.parameters() if hasattr(parameter, "ds_tensor")])


def _by_part(seen: dict[str, int], live: LiveTensors, engine: Any) -> dict[str, int]:
    weights = bytes_of([getattr(parameter, "ds_tensor", parameter.data) for parameter in engine.module.parameters()])
    inner = engine.deepspeed.optimizer.optimizer
    states = [value for state in inner.state.values() for value in state.values() if isinstance(value, Tensor) and value.ndim]
    optimizer = bytes_of([parameter.data for group in inner.param_groups for parameter in group["params"]] + states)
    passes = [live.peaks[f"{stage} 1"] for stage in (FORWARD, BACKWARD)]
    buckets = max(peak["buckets"] for peak in passes)
    bucket_at_update = sum(storage.nbytes() for storage, shape in live.storages() if shape == (BUCKET,))
    return {
        "weights": weights,
        "gradients": seen["update"] - weights - optimizer - bucket_at_update,
        "optimizer": optimizer,
        "activations": seen["kept"] - seen["before"] - seen["gathered"],
        "logits": max(peak["logits"] for peak in passes),
        "buffers": buckets + seen["gathered"],
        "total": max(seen["update"], *(peak["total"] for peak in passes)),
    }


def planned(config: PretrainConfig, ranks: int = RANKS) -> dict[str, int]:
    """Bytes of a device by the plan's arithmetic."""
    memory = estimate_memory(config, Layout.of(config, ranks))
    return {name: getattr(memory, name) for name in PARTS}


def run_cell(cell: Cell, model: ModelConfig = MODEL) -> dict[str, int]:
    """In a process of its own, as rank 0: its bytes by part."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from pretrain.parallel.engine import join_process_group
    from pretrain.parallel.launch import ALONE, build_context

    os.environ.update(ALONE | {"RANK": "0", "WORLD_SIZE": str(RANKS)})
    torch.set_num_threads(1)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    join_process_group(10)
    config = config_of(cell, model)
    return measure_rank(cell, config, build_context(Layout.of(config, RANKS), torch.device("cpu")))


def measure(output: Path | None) -> dict[str, Any]:
    """The content of the JSON, which is written after each layout."""
    figures: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores (1 thread used), {platform.processor() or platform.machine()}, no GPU",
        "ranks": RANKS,
        "tokens_per_micro_batch": ROWS * SLOTS,
        "seed": 0,
        "layouts": [],
    }
    for cell in CELLS:
        found = {"layout": vars(cell), "measured": call_forked(run_cell, cell), "planned": planned(config_of(cell))}
        figures["layouts"].append(found)
        if output:
            write_json(output, figures)
    return figures


def show(figures: dict[str, Any]) -> None:
    """Print measured and planned megabytes, and the ratio of the totals."""
    table = Table("ZeRO", "TP", "micro-b.", "type", "recompute", "dropout", *PARTS, "plan/measured")
    for one in figures["layouts"]:
        cells = [f"{one['measured'][part] / 1e6:.1f} / {one['planned'][part] / 1e6:.1f}" for part in PARTS]
        ratio = one["planned"]["total"] / one["measured"]["total"]
        table.add_row(*(str(value) for value in one["layout"].values()), *cells, f"{ratio:.3f}")
    Console(width=180).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write.")
    arguments = parser.parse_args()
    show(measure(arguments.output))


if __name__ == "__main__":
    main()
