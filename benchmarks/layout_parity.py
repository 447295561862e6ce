"""Every layout against a plain PyTorch loop, as one table over DP x TP x micro-batch x ZeRO: loss, gradient, norm.

python -m benchmarks.layout_parity [--output benchmarks/results/FILE.json]
"""

import argparse
import datetime
import os
import platform
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mose.atomic_file import write_json
from tests.datasets import make_dataset
from tests.distributed import RankPools
from tests.pretrain.cells import run_cell, tiny_config
from tests.pretrain.test_layouts import ALL, STEPS, differences, plain_loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    pools = RankPools()
    with tempfile.TemporaryDirectory() as scratch:
        cells = measure(make_dataset(Path(scratch)), pools)
    pools.close()
    figures = {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, gloo, no GPU",
        "steps": STEPS,
        "bars": {"loss": 1e-5, "gradient": 1e-5, "norm": 1e-4},
        "worst": {name: max(cell[name] or 0.0 for cell in cells) for name in ("loss", "gradient", "norm")},
        "cells": cells,
    }
    show(figures["worst"], cells)
    if arguments.output:
        write_json(arguments.output, figures)


def measure(dataset: Path, pools: RankPools) -> list[dict[str, float]]:
    """Relative differences of every cell; DeepSpeed knows no norm at stage 0."""
    reference = plain_loop(tiny_config(dataset))
    cells = []
    for data_ranks, tensor_ranks, micro_batch_rows, stage in ALL:
        config = tiny_config(dataset, tensor_ranks, micro_batch_rows, stage)
        result = pools.of(data_ranks * tensor_ranks).run(run_cell, config, STEPS)[0]
        loss, gradient, norm = differences(result, reference)
        place = {
            "data_ranks": data_ranks,
            "tensor_ranks": tensor_ranks,
            "micro_batch_rows": micro_batch_rows,
            "zero_stage": stage,
        }
        cells.append({**place, "loss": loss, "gradient": gradient, "norm": norm if stage else None})
    return cells


def show(worst: dict[str, float], cells: list[dict[str, float]]) -> None:
    """Print one line a cell and the worst of all."""
    table = Table("DP", "TP", "rows", "ZeRO", "loss", "gradient", "norm")
    for cell in cells:
        *place, loss, gradient, norm = cell.values()
        table.add_row(*map(str, place), f"{loss:.1e}", f"{gradient:.1e}", f"{norm:.1e}" if norm is not None else "-")
    table.add_row("", "", "", "worst", *(f"{value:.1e}" for value in worst.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
