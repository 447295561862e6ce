"""1,000 simulated steps of 512 ranks: which rows each rank reads, how even the ranks are, which shards they open. No devices.

Order, balance and micro-batches are those of a run (`pretrain.data`), the config is the shipped one of 512 GPUs; rows have the
lengths of real packed ones. Since each rank computes the share of every rank, one computation per step gives all of them. That
this is what a rank reads is checked by running loaders: of all ranks at the first step, of some nodes' ranks at the first step
after a resume and where an epoch ends.

Two data sets: a small one, whose rows are given out more than twice, to see each row exactly once per epoch; and one of 1T
tokens whose first epoch ends in mid-run. Each run is resumed twice on fewer ranks.

python -m benchmarks.simulated_steps [--steps 1000] [--output benchmarks/results/FILE.json]
"""

import argparse
import dataclasses
import datetime
import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.gpu_parts.rows import MADE_UP, DrawnRows
from mose.array_types import INT64_ARRAY
from mose.config import load_config
from mose.dataset.packed_sequence import TOKENS, token_dtype
from mose.dataset.row_index import INDEX_DTYPE
from mose.dataset.shard_format import RecordLayout, RowLabels
from mose.files.atomic_file import write_json
from pretrain.config.run import Layout, PretrainConfig
from pretrain.data.balancing import balance_ranks, fill_micro_batches
from pretrain.data.loader import BatchPlan, GlobalBatchLoader
from pretrain.data.mixture import Mixture
from pretrain.parallel.topology import place_of
from pretrain.train import batch_plan

CONFIG = Path(__file__).parents[1] / "configs/mose_1b_512gpu_tp1_zero1.yaml"
NODE_RANKS = 4
# Nodes whose loaders run at the later ones of the steps that are compared.
LOADED_NODES = 8
# Lengths are drawn for this many rows and repeat beyond: a table of 488 million rows would take gigabytes.
DRAWN = 1 << 20
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Leg:
    """Steps of a run between a start and the next."""

    ranks: int
    steps: int


@dataclass(frozen=True)
class Scenario:
    """A run on one data set: `shards` shards of `rows_per_shard` rows, from global batch number `first_step` on."""

    name: str
    shards: int
    rows_per_shard: int
    first_step: int
    tensor_ranks: int
    legs: tuple[Leg, ...]

    @property
    def rows(self) -> int:
        """Rows of the data set."""
        return self.shards * self.rows_per_shard


class ReadRows(DrawnRows):
    """Rows of a data set of any size that remember which of them were read."""

    def __init__(self, count: int, slots: int, vocabulary_size: int):
        super().__init__("dense", min(count, DRAWN), slots, vocabulary_size)
        self.count = count
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def tokens(self, rows_R: INT64_ARRAY) -> TOKENS:
        """Tokens [R, T] of these rows, which are then counted as read."""
        self.read += rows_R.tolist()
        return super().tokens(rows_R % DRAWN)

    def labels(self, rows_R: INT64_ARRAY) -> RowLabels:
        """Labels [R] of these rows."""
        return super().labels(rows_R % DRAWN)


@dataclass
class LegCounts:
    """What was seen in a leg; lists hold one number per step."""

    token_ratio: list[float] = field(default_factory=list)
    cost_ratio: list[float] = field(default_factory=list)
    rows_per_rank: list[tuple[int, int]] = field(default_factory=list)
    most_micro_batches: list[int] = field(default_factory=list)
    reads_per_rank: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def simulate(scenario: Scenario, config: PretrainConfig) -> dict[str, Any]:
    """The figures of one run, with the faults found; none is expected."""
    rows = ReadRows(scenario.rows, config.model.max_length, config.model.vocabulary_size)
    given: list[tuple[INT64_ARRAY, INT64_ARRAY]] = []
    faults: list[str] = []
    legs, step, loaded = [], scenario.first_step, 0
    for leg in scenario.legs:
        layout = Layout.of(config, leg.ranks)
        plan = plan_of(config, layout, 0)
        chosen = loaded_ranks(scenario, plan.global_batch_rows, step, leg)
        counts = LegCounts()
        opened_SF = np.zeros((layout.data_ranks, scenario.shards), dtype=bool)
        for now in range(step, step + leg.steps):
            shares, rows_G, epochs_G = one_step(scenario, rows, plan, now, counts)
            together = np.concatenate(shares)
            given.append((rows_G[together], epochs_G[together]))
            open_shards(scenario, [rows_G[share] for share in shares], opened_SF, counts)
            if now in chosen:
                faults += differing_ranks(config, layout, rows, (now, chosen[now]), [rows_G[share] for share in shares])
                loaded += len(chosen[now])
        step += leg.steps
        legs.append(figures_of(leg, layout, config, counts, opened_SF))
    rows_N, epochs_N = (np.concatenate(parts) for parts in zip(*given, strict=True))
    first_row = scenario.first_step * config.batch.global_rows
    faults += row_faults(rows_N, epochs_N, scenario.rows, first_row, (step - scenario.first_step) * config.batch.global_rows)
    return {
        **{name: value for name, value in dataclasses.asdict(scenario).items() if name != "legs"},
        "rows": scenario.rows,
        "epochs": {str(epoch): int((epochs_N == epoch).sum()) for epoch in np.unique(epochs_N)},
        "loaders_compared": loaded,
        "faults": faults,
        "legs": legs,
    }


def plan_of(config: PretrainConfig, layout: Layout, data_rank: int) -> BatchPlan:
    """The batch plan of a data rank, as a run makes it."""
    vocabulary = config.model.vocabulary_size
    ordinary = np.arange(len(MADE_UP.ids()), vocabulary).astype(token_dtype(vocabulary))
    return batch_plan(config, MADE_UP, ordinary, data_rank, layout.data_ranks)


def loaded_ranks(scenario: Scenario, batch: int, first: int, leg: Leg) -> dict[int, list[int]]:
    """By step, the ranks whose loaders run: at the first step of a leg, and where an epoch ends in it."""
    nodes = range(0, leg.ranks // NODE_RANKS, max(1, leg.ranks // NODE_RANKS // LOADED_NODES))
    some = [node * NODE_RANKS + rank for node in nodes for rank in range(NODE_RANKS)]
    ends = range(0, (first + leg.steps) * batch, scenario.rows)
    found = {end // batch: some for end in ends if first * batch < end} | {first: some}
    return found | ({first: list(range(leg.ranks))} if first == scenario.first_step else {})


def one_step(
    scenario: Scenario, rows: ReadRows, plan: BatchPlan, step: int, counts: LegCounts
) -> tuple[list[INT64_ARRAY], INT64_ARRAY, INT64_ARRAY]:
    """Places in the global batch by data rank, in the order of their micro-batches; the batch's rows and epochs [G]."""
    began = time.perf_counter()
    start, size = step * plan.global_batch_rows, plan.global_batch_rows
    rows_G, epochs_G = Mixture.of_one(scenario.rows).rows_of_run(plan.seed, start, size, plan.block_rows, plan.window_rows)
    tokens_G = rows.labels(rows_G).num_tokens
    costs_G = plan.row_cost.of(tokens_G)
    places = balance_ranks(costs_G, plan.data_ranks)
    counts.seconds.append(time.perf_counter() - began)
    shares, micro_batches = [], []
    for own in places:
        filled = fill_micro_batches(tokens_G[own], plan.micro_batch_tokens)
        micro_batches.append(len(filled))
        shares.append(own[np.concatenate(filled)])
    counts.token_ratio.append(_ratio([int(tokens_G[own].sum()) for own in shares]))
    counts.cost_ratio.append(_ratio([int(costs_G[own].sum()) for own in shares]))
    counts.rows_per_rank.append((min(map(len, shares)), max(map(len, shares))))
    counts.most_micro_batches.append(max(micro_batches))
    return shares, rows_G, epochs_G


def _ratio(values: list[int]) -> float:
    return max(values) * len(values) / sum(values)


def open_shards(scenario: Scenario, rows_by_rank: list[INT64_ARRAY], opened_SF: NDArray[np.bool_], counts: LegCounts) -> None:
    """Note which shards each data rank touches in a step; one that it has opened stays open."""
    touched = [np.unique(rows // scenario.rows_per_shard) for rows in rows_by_rank]
    counts.reads_per_rank.append(statistics.mean(map(len, touched)))
    for data_rank, shards in enumerate(touched):
        opened_SF[data_rank, shards] = True


def differing_ranks(
    config: PretrainConfig, layout: Layout, rows: ReadRows, loaded: tuple[int, list[int]], expected: list[INT64_ARRAY]
) -> Iterator[str]:
    """Run the loaders of some ranks at one step, and compare what each reads with its data rank's rows."""
    step, ranks = loaded
    for rank in ranks:
        place = place_of(rank, layout.tensor_ranks)
        rows.read.clear()
        batches = GlobalBatchLoader(rows, plan_of(config, layout, place.data_rank)).share(step * config.batch.global_rows)
        trained = np.concatenate([batch.row_numbers_B.numpy() for batch in batches])
        wanted = np.sort(expected[place.data_rank])
        if not (np.array_equal(np.sort(rows.read), wanted) and np.array_equal(np.sort(trained), wanted)):
            yield f"step {step}, rank {rank}: reads other rows than data rank {place.data_rank} is given"


def row_faults(rows_N: INT64_ARRAY, epochs_N: INT64_ARRAY, rows: int, start: int, count: int) -> Iterator[str]:
    """What is wrong with the rows that all ranks together were given at positions start..start+count-1 of the run."""
    if len(rows_N) != count:
        yield f"{len(rows_N)} rows were given out, expected {count}"
    keys, times = np.unique(epochs_N * rows + rows_N, return_counts=True)
    for key in keys[times > 1][:10]:
        yield f"epoch {key // rows}: row {key % rows} was given out more than once"
    for epoch in range(start // rows, -(-(start + count) // rows)):
        expected = min(start + count, (epoch + 1) * rows) - max(start, epoch * rows)
        found = int(((keys >= epoch * rows) & (keys < (epoch + 1) * rows)).sum())
        if found != expected:
            yield f"epoch {epoch}: {found} different rows, expected {expected}"


def figures_of(
    leg: Leg, layout: Layout, config: PretrainConfig, counts: LegCounts, opened_SF: NDArray[np.bool_]
) -> dict[str, Any]:
    """The figures of a leg. A row read is one record of its shard and one page of the shard's index."""
    record = RecordLayout(config.model.max_length, np.dtype(token_dtype(config.model.vocabulary_size))).stride
    rows_per_rank = config.batch.global_rows / layout.data_ranks
    opens_S = opened_SF.sum(axis=1)
    data_rank_R = np.array([place_of(rank, layout.tensor_ranks).data_rank for rank in range(leg.ranks)])
    opens_of_nodes = opens_S[data_rank_R].reshape(-1, NODE_RANKS).sum(axis=1)
    read = rows_per_rank * (record + PAGE_BYTES)
    return {
        "ranks": leg.ranks,
        "data_ranks": layout.data_ranks,
        "steps": leg.steps,
        "max_to_mean_tokens": _spread(counts.token_ratio),
        "max_to_mean_cost": _spread(counts.cost_ratio),
        "fewest_and_most_rows_of_a_rank": [
            min(low for low, _ in counts.rows_per_rank),
            max(high for _, high in counts.rows_per_rank),
        ],
        "most_micro_batches_of_a_rank": max(counts.most_micro_batches),
        "share_of_steps_with_more_than_planned": sum(n > layout.micro_batches for n in counts.most_micro_batches) / leg.steps,
        "shards_opened_by_a_rank": {"median": float(np.median(opens_S)), "most": int(opens_S.max())},
        "shards_opened_by_a_node": {"median": float(np.median(opens_of_nodes)), "most": int(opens_of_nodes.max())},
        "shards_read_by_a_rank_per_step": statistics.mean(counts.reads_per_rank),
        "bytes_read_by_a_rank_per_step": round(read),
        "bytes_read_by_a_node_per_step": round(read * NODE_RANKS),
        "milliseconds_of_order_and_balance": 1e3 * statistics.median(counts.seconds),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "worst": max(values)}


def scenarios(steps: int, tensor_ranks: int, batch: int) -> tuple[Scenario, Scenario]:
    """Both data sets; the run goes from 512 ranks to 384 and 256."""
    first, second = steps * 2 // 5, steps * 3 // 10
    legs = Leg(512, first), Leg(384, second), Leg(256, steps - first - second)
    # An odd number of rows per shard, so that epochs end within a block of rows, a window and a global batch.
    small = Scenario("2.9 epochs", 101, steps * batch * 10 // 29 // 101 | 1, 0, tensor_ranks, legs)
    large = Scenario("1T tokens", 1000, 488_000, 488_000_000 // batch - steps // 2, tensor_ranks, legs)
    return small, large


def configured(tensor_ranks: int) -> PretrainConfig:
    """The shipped config of 512 GPUs; with tensor parallelism a data rank has as many rows more."""
    config = load_config(PretrainConfig, CONFIG)
    if tensor_ranks > 1:
        batch = dataclasses.replace(config.batch, micro_batch_rows=config.batch.micro_batch_rows * tensor_ranks)
        parallel = dataclasses.replace(config.parallel, tensor_parallel_size=tensor_ranks, zero_partition_ranks=0)
        config = dataclasses.replace(config, batch=batch, parallel=parallel)
    return config.resolve(config.model.vocabulary_size)


def measure(steps: int) -> dict[str, Any]:
    """The content of the JSON."""
    began, runs = time.perf_counter(), []
    for tensor_ranks in (1, 4):
        config = configured(tensor_ranks)
        runs += [simulate(scenario, config) for scenario in scenarios(steps, tensor_ranks, config.batch.global_rows)]
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores (1 thread used), {platform.processor() or platform.machine()}, no GPU",
        "config": str(CONFIG.relative_to(CONFIG.parents[1])),
        "seed": configured(1).seed,
        "steps": steps,
        "index_bytes_per_row": INDEX_DTYPE.itemsize,
        "seconds": round(time.perf_counter() - began, 1),
        "runs": runs,
    }


def show(figures: dict[str, Any]) -> None:
    """Print one line per leg."""
    names = "data set", "TP", "ranks", "steps", "tokens max/mean", "cost max/mean", "rows", "opens", "MB per step", "ms", "faults"
    table = Table(*names)
    for run in figures["runs"]:
        for leg in run["legs"]:
            ratios = (leg["max_to_mean_tokens"], leg["max_to_mean_cost"])
            table.add_row(
                *(run["name"], str(run["tensor_ranks"]), str(leg["ranks"]), str(leg["steps"])),
                *(f"{ratio['median']:.4f} ({ratio['worst']:.4f})" for ratio in ratios),
                "-".join(map(str, leg["fewest_and_most_rows_of_a_rank"])),
                f"{leg['shards_opened_by_a_rank']['median']:.0f}",
                f"{leg['bytes_read_by_a_rank_per_step'] / 1e6:.3f}",
                f"{leg['milliseconds_of_order_and_balance']:.1f}",
                str(len(run["faults"])),
            )
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="Steps of each run.")
    parser.add_argument("--output", type=Path, help="JSON file to write.")
    arguments = parser.parse_args()
    figures = measure(arguments.steps)
    show(figures)
    for run in figures["runs"]:
        for fault in run["faults"]:
            print(f"{run['name']}, TP {run['tensor_ranks']}: {fault}")
    if arguments.output:
        write_json(arguments.output, figures)


if __name__ == "__main__":
    main()
