"""Elastic resume over 64 pairs: saved at DP x TP x ZeRO, resumed at each other; writes the largest loss differences as JSON.

    python -m benchmarks.elastic --output benchmarks/results/elastic_DATE.json

Four gloo ranks on the CPU, fp32, dropout 0, three steps before saving and five after. The reference is the run that saved,
continued without interruption in its own layout. Bar: 1e-6, since another layout adds the same numbers in another order. Pairs
that the output file already has are not run again, so an interrupted run continues.
"""

import argparse
import datetime
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mose.files.atomic_file import write_json
from tests.datasets import make_dataset
from tests.distributed import RankPools
from tests.pretrain.elastic_cells import LAYOUTS, SAVED_STEP, STEPS, cell_name, resume_everywhere

BAR = 1e-6
Differences = dict[str, dict[str, float]]


def main() -> None:
    """Run the pairs, print the table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    output: Path | None = parser.parse_args().output
    found: Differences = json.loads(output.read_text("utf-8"))["differences"] if output and output.is_file() else {}
    pools = RankPools()
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = make_dataset(Path(folder) / "rows", rows=100, sequence_length=48, seed=1)
            for saved in (cell for cell in LAYOUTS if cell_name(cell) not in found):
                row = resume_everywhere(rows, saved, LAYOUTS, Path(folder) / cell_name(saved), pools)
                found[cell_name(saved)] = {cell_name(cell): value for cell, value in row.items()}
                if output:
                    write_json(output, figures(found))
    finally:
        pools.close()
    show(found)
    worst = figures(found)["worst"]
    if worst > BAR:
        raise SystemExit(f"the largest difference is {worst:.1e}, expected at most {BAR}")


def figures(found: Differences) -> dict[str, Any]:
    """The content of the output file."""
    values = [value for row in found.values() for value in row.values()]
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, gloo, no GPU",
        "what": f"largest relative loss difference over {STEPS} steps after resuming a checkpoint of step {SAVED_STEP}",
        "reference": "the run that saved, continued in its own layout; fp32, dropout 0, 4 layers of width 32, 8 rows per step",
        "names": "data ranks x tensor ranks z ZeRO stage; saved at -> resumed at",
        "bar": BAR,
        "pairs": len(values),
        "worst": max(values),
        "bit_equal_pairs": sum(value == 0 for value in values),
        "differences": found,
    }


def show(found: Differences) -> None:
    """Print one line per saved layout."""
    names = [cell_name(cell) for cell in LAYOUTS]
    table = Table("saved at", *(f"-> {name}" for name in names))
    for saved in names:
        table.add_row(saved, *(f"{found[saved][name]:.1e}" for name in names))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
