"""A simulated start of 512 ranks: opens, stats, bytes, messages and seconds per phase, without devices or a network.

Ranks 0, 1, 4 and 511 run one after the other, each in a process of its own, on torch's fake back end and on a data set whose
shards are full of holes. Counts of all ranks: rank 0, ranks like 4 (the first of each other node of 4) and ranks like 1 and 511.
Seconds are those of one rank alone on this machine: contention of all ranks for a file system or a store is not simulated.

python -m benchmarks.simulated_start [--tensor-parallel 4] [--layers 2] [--output benchmarks/results/FILE.json]
"""

import argparse
import dataclasses
import datetime
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import distributed as dist

from mose.dataset.packed_sequence import SpecialTokens, token_dtype
from mose.files.atomic_file import write_json
from mose.model.model_config import ModelConfig
from pretrain.checkpoints.store import CheckpointStore
from pretrain.config.run import BatchConfig, Layout, ParallelConfig, PretrainConfig
from pretrain.data.loader import GlobalBatchLoader
from pretrain.parallel.context import ParallelContext
from pretrain.parallel.watchdog import Watchdog
from pretrain.storage.local_rows import LocalRows, SplitTable
from pretrain.storage.node_labels import SHARED_MEMORY, open_node_labels
from tests.pretrain.collective_cells import RECORDED
from tests.pretrain.forked import call_forked
from tests.pretrain.simulated import simulated

RANKS = 512
NODE_RANKS = 4
SOME_RANKS = (0, 1, 4, 511)
GLOBAL_ROWS = 2048
VOCABULARY = 1000
MADE_UP = SpecialTokens(pad=0, unk=1, sep=2, cls=3, mask=4)
TINY = ModelConfig(
    vocabulary_size=VOCABULARY,
    width=64,
    feed_forward_width=256,
    num_layers=4,
    num_heads=4,
    num_key_value_heads=4,
    exit_layers=(2, 4),
)


@dataclass
class Phase:
    """What one rank did in one phase."""

    opens: int = 0
    stats: int = 0
    listings: int = 0
    read_bytes: int = 0
    """Read by system calls; pages of memory maps are not in it."""
    collectives: int = 0
    new_groups: int = 0
    store_requests: int = 0
    seconds: float = 0.0


class Meter:
    """Counts what this process does, phase by phase; it can be made once per process, since Python's audit hooks stay."""

    def __init__(self) -> None:
        self.phases: dict[str, Phase] = {}
        self._now = Phase()
        sys.addaudithook(self._audit)
        for name in ("stat", "lstat"):
            setattr(os, name, self._counted(getattr(os, name), "stats"))
        for name in RECORDED:
            setattr(dist, name, self._counted(getattr(dist, name), "new_groups" if name == "new_group" else "collectives"))

    def _audit(self, event: str, _: object) -> None:
        if event == "open":
            self._now.opens += 1
        elif event in ("os.listdir", "os.scandir"):
            self._now.listings += 1

    def _counted(self, original: Callable[..., Any], field: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.add(field)
            return original(*arguments, **named)

        return call

    def add(self, field: str) -> None:
        """Count one more."""
        setattr(self._now, field, getattr(self._now, field) + 1)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens in the block under this name."""
        read, began = _read_bytes(), time.perf_counter()
        self._now = self.phases[name] = Phase()
        yield
        # Taken off again: /proc's own file is opened and read to know how much was read.
        now, self._now = self._now, Phase()
        now.seconds, now.read_bytes = time.perf_counter() - began, _read_bytes() - read


def _read_bytes() -> int:
    return int(Path("/proc/self/io").read_text("ascii").split()[1])


class CountingStore:
    """Stands in for a rank's connection to the process group's store, in which every rank has reported."""

    def __init__(self, meter: Meter):
        self._meter, self._report = meter, b""

    def set(self, _: str, value: str) -> None:
        """Keep the last report: the others' look like it."""
        self._meter.add("store_requests")
        self._report = value.encode()

    def check(self, _: list[str]) -> bool:
        """Every rank has reported."""
        self._meter.add("store_requests")
        return True

    def get(self, _: str) -> bytes:
        """The report of any rank."""
        self._meter.add("store_requests")
        return self._report

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """The reports of these ranks."""
        self._meter.add("store_requests")
        return [self._report] * len(keys)


def start_rank(
    rank: int, tensor_ranks: int, layers: int, dataset: Path, checkpoint: Path, memory: Path | None
) -> dict[str, dict[str, float]]:
    """The phases of one rank's start, from the data set to a saved checkpoint."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from pretrain.parallel.engine import join_process_group
    from pretrain.parallel.launch import ALONE, build_context
    from pretrain.train import build_engine

    os.environ.update(ALONE | {"RANK": str(rank), "WORLD_SIZE": str(RANKS)})
    torch.set_num_threads(1)
    config = config_of(TINY, tensor_ranks)
    meter = Meter()
    with meter.phase("open the data set"):
        rows = LocalRows(dataset, "train")
    if memory is not None:
        with meter.phase("labels of the node"):
            rows.share_labels(open_node_labels(rows.table, NODE_RANKS, memory))
    with meter.phase("join and make groups"):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=RANKS)
        join_process_group(10)
        context = build_context(Layout.of(config, RANKS), torch.device("cpu"))
    for kind in ("new", "resumed") if layers else ():
        with meter.phase(f"weights of a {kind} run"):
            weights(layers, tensor_ranks, context, resumed=kind == "resumed")
    with meter.phase("engine (a tiny model)"):
        build_engine(config, context)
    with meter.phase("rows of the first step"):
        loader_of(rows, config, context).share(0)
    with meter.phase("report a save"):
        report_save(context, checkpoint)
    with meter.phase("explain a hang"):
        explain_hang(meter, context)
    return {name: dataclasses.asdict(phase) for name, phase in meter.phases.items()}


def config_of(model: ModelConfig, tensor_ranks: int) -> PretrainConfig:
    """A run of `model` on 512 ranks."""
    batch = BatchConfig(GLOBAL_ROWS, 4 * tensor_ranks)
    config = PretrainConfig(model=model, batch=batch, parallel=ParallelConfig(tensor_parallel_size=tensor_ranks))
    return config.resolve(model.vocabulary_size)


def weights(layers: int, tensor_ranks: int, context: ParallelContext, resumed: bool) -> None:
    """Build the 1B model with fewer layers, with drawn weights or, resumed, with those that a checkpoint will set."""
    from pretrain.model.training_model import build_training_model

    model = ModelConfig(vocabulary_size=49156, num_layers=layers, exit_layers=(layers,))
    config = config_of(model, tensor_ranks)
    build_training_model(config.model, config.parallel, 0, torch.bfloat16, context, from_checkpoint=resumed)


def loader_of(rows: LocalRows, config: PretrainConfig, context: ParallelContext) -> GlobalBatchLoader:
    """The loader of this rank."""
    from pretrain.train import batch_plan

    ordinary = np.arange(len(MADE_UP.ids()), VOCABULARY).astype(token_dtype(VOCABULARY))
    return GlobalBatchLoader(rows, batch_plan(config, MADE_UP, ordinary, context.data_rank, context.layout.data_ranks))


def part_of(rank: int) -> str:
    """The file of one rank's part of a checkpoint."""
    return f"state/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def report_save(context: ParallelContext, folder: Path) -> None:
    """Checksums and sizes of a checkpoint that all ranks have written; each of them has one part, rank 0 the weights as well."""
    store = CheckpointStore(folder, context, {})

    def gather(mine: Any) -> list[Any]:
        if not isinstance(mine, dict):
            return [mine] if context.is_main else [(None, None)]
        return [mine if rank == context.rank else {part_of(rank): ("0" * 64, 6)} for rank in range(RANKS)]

    # What the other ranks say comes from here, since nothing is sent.
    store._gather = gather  # type: ignore[method-assign]
    store._described(folder, [folder / part_of(context.rank)])


def explain_hang(meter: Meter, context: ParallelContext) -> None:
    """A rank's report to the store, and its look at the reports of all others before a time-out."""
    from pretrain.parallel import watchdog

    watchdog._own_store = lambda: CountingStore(meter)
    dog = Watchdog(context.rank, RANKS, context.layout.tensor_ranks, 600.0)
    dog._publish()
    dog._reports()


def all_ranks(by_rank: dict[int, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Counts of all ranks by phase, and the seconds of the slowest rank that was run."""
    nodes = RANKS // NODE_RANKS
    total: dict[str, dict[str, float]] = {}
    for phase, of_main in by_rank[0].items():
        first, *rest = (by_rank[rank][phase] for rank in (4, 1, 511))
        total[phase] = {
            name: of_main[name] + (nodes - 1) * first[name] + (RANKS - nodes) * statistics.mean(one[name] for one in rest)
            for name in of_main
        }
        total[phase]["seconds"] = max(one["seconds"] for one in (of_main, first, *rest))
    return total


def show(figures: dict[str, Any]) -> None:
    """Print the sums of all ranks, one line per phase."""
    fields = [field.name for field in dataclasses.fields(Phase)]
    table = Table("phase, all ranks", *(name.replace("_", " ") for name in fields))
    for phase, values in figures["all_ranks"].items():
        table.add_row(phase, *(f"{values[name]:,.0f}" for name in fields[:-1]), f"{values['seconds']:.2f}")
    Console().print(table)


def measure(tensor_ranks: int, layers: int, shards: int, rows_per_shard: int, share_labels: bool) -> dict[str, Any]:
    """The content of the JSON."""
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as memory:
        dataset = simulated(Path(scratch) / "data", shards, rows_per_shard, 0, GLOBAL_ROWS)
        checkpoint = Path(scratch) / "step-000001"
        (checkpoint / "state").mkdir(parents=True)
        for rank in range(RANKS):
            (checkpoint / part_of(rank)).write_bytes(b"states")
        nodes = {rank: Path(memory) / name for rank, name in ((0, "first"), (4, "second"), (1, "written"), (511, "written"))}
        for node in nodes.values():
            node.mkdir(exist_ok=True)
        # Ranks 1 and 511 find the table of their node, which this process holds.
        written = open_node_labels(SplitTable(dataset, "train"), NODE_RANKS, nodes[1]) if share_labels else None
        by_rank = {
            rank: call_forked(start_rank, rank, tensor_ranks, layers, dataset, checkpoint, nodes[rank] if share_labels else None)
            for rank in SOME_RANKS
        }
        if written is not None:
            written.close()
    return {
        "date": datetime.date.today().isoformat(),
        "ranks": RANKS,
        "tensor_ranks": tensor_ranks,
        "shards": shards,
        "rows_per_shard": rows_per_shard,
        "share_labels": share_labels,
        "layers_of_36": layers,
        "all_ranks": all_ranks(by_rank),
        "by_rank": by_rank,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensor-parallel", type=int, default=4, help="Ranks that share a layer.")
    parser.add_argument("--layers", type=int, default=2, help="Layers of the 1B model whose weights are made; 0: no weights.")
    parser.add_argument("--shards", type=int, default=1000, help="Shards of the simulated data set of 1T tokens.")
    parser.add_argument("--rows-per-shard", type=int, default=488_000, help="488,000 in 1,000 shards are 1T tokens.")
    parser.add_argument("--share-labels", action="store_true", help="One reader of the indexes per node, as a run has it.")
    parser.add_argument("--output", type=Path, help="JSON file to write.")
    arguments = parser.parse_args()
    sizes = arguments.shards, arguments.rows_per_shard
    figures = measure(arguments.tensor_parallel, arguments.layers, *sizes, arguments.share_labels)
    show(figures)
    if arguments.output:
        write_json(arguments.output, figures)


if __name__ == "__main__":
    main()
