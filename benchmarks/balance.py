"""How even the data ranks of a step are: rows in order, equal numbers of rows by tokens, and balanced by cost. No training.

Rows are real text (Python's standard library) packed both ways in rows of 2,048; a rank's cost is its operations by
`RowCost` at the 1B model's shape. The heaviest rank sets the pace: the others wait max/mean - 1 of their own time.

python -m benchmarks.balance [--steps 20] [--output benchmarks/results/FILE.json] [--plot FILE.png]
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot

from benchmarks.step import pack
from data_prep.sources.registry import SourcesConfig
from data_prep.tokenization.train_tokenizer import TokenizerTrainingConfig, train_tokenizer
from mose.array_types import INT64_ARRAY
from mose.files.atomic_file import write_json
from mose.model.configuration_mose import ModularStarEncoderConfig
from mose.model.model_config import ModelConfig
from mose.seeding import generator
from pretrain.data.balancing import balance_ranks, micro_batches_of_rank
from pretrain.data.masking import MASKED_SHARE
from pretrain.data.row_cost import RowCost
from pretrain.storage.local_rows import LocalRows

SLOTS, GLOBAL_ROWS, MICRO_BATCH_ROWS = 2048, 2048, 4
RANKS = (512, 64)
MODES = ("faithful", "dense")
VOCABULARY = 12288
Assignment = Callable[[INT64_ARRAY, INT64_ARRAY, int], list[INT64_ARRAY]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        lengths = row_lengths(Path(scratch))
    figures = measure(lengths, arguments.steps)
    print(json.dumps(figures, indent=1))
    if arguments.output:
        write_json(arguments.output, figures)
    if arguments.plot:
        draw(figures, arguments.plot)


def row_lengths(scratch: Path) -> dict[str, INT64_ARRAY]:
    """Real tokens of each row of the same text, packed both ways."""
    source = SourcesConfig(directories=(sysconfig.get_path("stdlib"),), include_suffixes=(".py",), max_repository_bytes=1 << 24)
    config = TokenizerTrainingConfig(output=str(scratch / "tokenizer"), vocabulary_size=VOCABULARY, sources=source)
    tokenizer, lengths = train_tokenizer(config), {}
    for mode in MODES:
        rows = LocalRows(pack(scratch, tokenizer, source, mode, SLOTS), "train")
        lengths[mode] = rows.labels(np.arange(len(rows))).num_tokens
        rows.close()
    return lengths


def measure(lengths: dict[str, INT64_ARRAY], steps: int) -> dict[str, Any]:
    """Numbers of both packings at both sizes; medians over steps of rows drawn at random."""
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores (1 thread used), {platform.processor() or platform.machine()}, no GPU",
        "rows_a_step": GLOBAL_ROWS,
        "micro_batch_rows": MICRO_BATCH_ROWS,
        "steps": steps,
        **{mode: {"fill": float(lengths[mode].mean()) / SLOTS} | at_sizes(mode, lengths[mode], steps) for mode in MODES},
    }


def at_sizes(mode: str, lengths: INT64_ARRAY, steps: int) -> dict[str, Any]:
    """Spread of each assignment, micro-batches per rank, and the time to compute the assignment, by number of data ranks."""
    cost, found = RowCost.of_model(ModularStarEncoderConfig(**ModelConfig().hugging_face()), MASKED_SHARE), {}
    for ranks in RANKS:
        random = generator(0, "balance", mode, ranks)
        batches = [random.choice(lengths, GLOBAL_ROWS) for _ in range(steps)]
        found[f"{ranks}_ranks"] = {
            "dearest_to_mean": {
                name: statistics.median(spread(assign(batch, cost.of(batch), ranks), cost.of(batch)) for batch in batches)
                for name, assign in ASSIGNMENTS.items()
            },
            "micro_batches_a_rank": micro_batches(batches, cost, ranks),
            "dealing_cpu_milliseconds": statistics.median(milliseconds(batch, cost, ranks) for batch in batches),
        }
    return found


def in_order(num_tokens_G: INT64_ARRAY, costs_G: INT64_ARRAY, ranks: int) -> list[INT64_ARRAY]:
    """Neighbouring rows, the same number for each rank: what a sampler does that does not look at lengths."""
    return list(np.arange(len(costs_G)).reshape(ranks, -1))


def equal_rows(num_tokens_G: INT64_ARRAY, costs_G: INT64_ARRAY, ranks: int) -> list[INT64_ARRAY]:
    """Longest first in rounds of one row per rank, the longest of a round to the rank with the fewest tokens."""
    totals_S, rounds = np.zeros(ranks, dtype=np.int64), []
    for rows_S in np.argsort(-num_tokens_G, kind="stable").reshape(-1, ranks):
        assigned_S = np.empty_like(rows_S)
        assigned_S[np.argsort(totals_S, kind="stable")] = rows_S
        totals_S += num_tokens_G[assigned_S]
        rounds.append(assigned_S)
    return list(np.stack(rounds, axis=1))


ASSIGNMENTS: dict[str, Assignment] = {
    "in order": in_order,
    "equal rows, by tokens": equal_rows,
    "by cost (now)": lambda num_tokens_G, costs_G, ranks: balance_ranks(costs_G, ranks),
}


def spread(assigned: list[INT64_ARRAY], costs_G: INT64_ARRAY) -> float:
    """Cost of the heaviest rank over that of the mean one."""
    totals = np.array([costs_G[rows].sum() for rows in assigned])
    return float(totals.max() / totals.mean())


def micro_batches(batches: list[INT64_ARRAY], cost: RowCost, ranks: int) -> dict[str, float]:
    """Micro-batches per rank with a fixed number of rows in each, and packed by tokens; over some ranks of each step."""
    budget, asked = MICRO_BATCH_ROWS * SLOTS, range(0, ranks, max(1, ranks // 8))
    numbers = [
        len(micro_batches_of_rank(batch, cost.of(batch), rank, ranks, budget, False)) for batch in batches[:5] for rank in asked
    ]
    fixed = GLOBAL_ROWS // (ranks * MICRO_BATCH_ROWS)
    return {"fixed_rows": fixed, "mean": statistics.mean(numbers), "fewest": min(numbers), "most": max(numbers)}


def milliseconds(batch: INT64_ARRAY, cost: RowCost, ranks: int) -> float:
    """CPU time in which a rank finds its micro-batches of one step; spent in the loader's thread during the step before."""
    began = time.process_time()
    micro_batches_of_rank(batch, cost.of(batch), 0, ranks, MICRO_BATCH_ROWS * SLOTS, False)
    return 1000 * (time.process_time() - began)


def draw(figures: dict[str, Any], path: Path) -> None:
    """Bars of the time that the mean rank waits for the heaviest one."""
    matplotlib.use("Agg")
    cells = [(mode, ranks) for mode in MODES for ranks in RANKS]
    figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
    for number, name in enumerate(ASSIGNMENTS):
        waits = [100 * (figures[mode][f"{ranks}_ranks"]["dearest_to_mean"][name] - 1) for mode, ranks in cells]
        bars = axes.bar(np.arange(len(cells)) + 0.27 * (number - 1), waits, 0.25, label=name)
        axes.bar_label(bars, labels=["< .01 %" if wait < 0.01 else f"{wait:.2g} %" for wait in waits], fontsize=8)
    names = [f"{mode} rows (fill {figures[mode]['fill']:.2f})\n{ranks} ranks" for mode, ranks in cells]
    axes.set_xticks(range(len(cells)), names)
    axes.set_yscale("log")
    axes.set_ylabel("wait of the mean rank for the heaviest,\n% of its own work (log)")
    axes.set_title(f"{figures['rows_a_step']:,} rows per step on data ranks, medians of {figures['steps']} steps")
    axes.legend()
    axes.margins(y=0.15)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
