"""Rows a second from the same shards: our memory-mapped loader against webdataset's pipeline, one core, medians, one run.

python benchmarks/loader.py [--rows 4096] [--output benchmarks/results/FILE.json]
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import webdataset

from mose.atomic_file import write_json
from mose.manifest import read_manifest
from mose.tokenizer import load_tokenizer
from pretrain.data import BatchPlan, GlobalBatchLoader, PackedRows
from tests.datasets import make_dataset

REPEATS = 5
BATCH_ROWS = 32


def rows_per_second(work: Callable[[], int]) -> float:
    """Median over repeats of rows by process CPU time (all threads), which neighbours on the machine disturb less."""
    rates = []
    for _ in range(REPEATS):
        began = time.process_time()
        rows = work()
        rates.append(rows / (time.process_time() - began))
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(make_dataset(Path(scratch), rows=arguments.rows, sequence_length=2048, rows_per_shard=1024))
    print(json.dumps(figures, indent=1))
    if arguments.output:
        write_json(arguments.output, figures)


def measure(dataset: Path) -> dict[str, object]:
    """Rates and ratios on one data set."""
    rows, tokenizer = PackedRows(dataset, "train"), load_tokenizer(dataset)
    shards = [str(dataset / shard.path) for shard in read_manifest(dataset).shards("train")]
    order = np.random.default_rng(0).permutation(len(rows))
    loader = GlobalBatchLoader(rows, BatchPlan(0, BATCH_ROWS, BATCH_ROWS, tokenizer.special, tokenizer.ordinary_ids()))

    def ours_raw() -> int:
        return sum(len(rows.rows(order[start : start + BATCH_ROWS])[0]) for start in range(0, len(order), BATCH_ROWS))

    def ours_masked() -> int:
        return sum(batch.num_rows for start in range(0, len(order), BATCH_ROWS) for batch in loader.share(start))

    def webdataset_raw() -> int:
        return sum(1 for _ in webdataset.WebDataset(shards, shardshuffle=False).shuffle(1000).decode())

    rates = {work.__name__: rows_per_second(work) for work in (ours_raw, ours_masked, webdataset_raw)}
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, no GPU",
        "rows": len(rows),
        "rows_per_cpu_second": rates,
        "ratio_raw": rates["ours_raw"] / rates["webdataset_raw"],
        "ratio_masked_batches_to_raw_webdataset": rates["ours_masked"] / rates["webdataset_raw"],
    }


if __name__ == "__main__":
    main()
