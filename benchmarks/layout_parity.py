"""Every layout against a plain PyTorch loop, as one table: loss, gradient, norm, and the bars they must keep.

python -m benchmarks.layout_parity [--output benchmarks/results/FILE.json] [--markdown docs/performance.md]
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mose.errors import MoseError
from mose.files.atomic_file import write_json, write_text
from tests.datasets import make_dataset
from tests.distributed import RankPools
from tests.pretrain.cells import run_cell, tiny_config
from tests.pretrain.layout_cells import ALL, BARS, STEPS, differences, plain_loop

BEGIN, END = "<!-- layout parity: begin -->", "<!-- layout parity: end -->"
MEASURES = ("loss", "gradient", "norm")
HEADER = ("DP", "TP", "SP", "rows", "ZeRO", "over ranks", "checkpointing", "precision", "compile", *MEASURES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--markdown", type=Path, help="file in which the table between the markers is replaced")
    parser.add_argument("--from-results", type=Path, help="do not measure: take the numbers of an earlier run")
    arguments = parser.parse_args()
    figures = read_figures(arguments.from_results) if arguments.from_results else measured_figures()
    show(figures)
    if arguments.output:
        write_json(arguments.output, figures)
    if arguments.markdown:
        fill_in(arguments.markdown, markdown(figures))


def read_figures(path: Path) -> dict[str, Any]:
    """The numbers of an earlier run."""
    return json.loads(path.read_text("utf-8"))  # type: ignore[no-any-return]


def measured_figures() -> dict[str, Any]:
    """Numbers of every cell."""
    pools = RankPools()
    with tempfile.TemporaryDirectory() as scratch:
        cells = measure(make_dataset(Path(scratch)), pools)
    pools.close()
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, gloo, no GPU",
        "steps": STEPS,
        "listed": len(ALL),
        "bars": BARS,
        "worst": {precision: worst(cells, precision) for precision in BARS},
        "exceeded": [cell for cell in cells if cell["exceeded"]],
        "cells": cells,
    }


def measure(dataset: Path, pools: RankPools) -> list[dict[str, Any]]:
    """Relative differences of every cell; DeepSpeed gives no norm at stage 0."""
    references = {heads: plain_loop(tiny_config(dataset, key_value_heads=heads)) for heads in (2, 4)}
    results = []
    for cell in ALL:
        outcome = pools.of(cell.ranks).run(run_cell, cell.config(dataset), STEPS)[0]
        found = differences(outcome, references[cell.key_value_heads], cell)
        place = dataclasses.asdict(cell)
        results.append({**place, **dataclasses.asdict(found), "exceeded": found.exceeded(cell.precision)})
    return results


def worst(cells: list[dict[str, Any]], precision: str) -> dict[str, float]:
    """The largest differences of all cells of one precision."""
    chosen = [cell for cell in cells if cell["precision"] == precision]
    return {name: max(cell[name] or 0.0 for cell in chosen) for name in MEASURES}


def lines(figures: dict[str, Any]) -> list[list[str]]:
    """One line per cell, in the order of `HEADER`."""
    return [
        [
            *(str(cell[name]) for name in ("data_ranks", "tensor_ranks")),
            "yes" if cell["sequence_parallel"] else "",
            *(str(cell[name]) for name in ("micro_batch_rows", "zero_stage")),
            str(cell.get("zero_partition_ranks") or ""),
            *(str(cell[name]) for name in ("activation_checkpointing", "precision")),
            "yes" if cell["compile"] else "",
            *("-" if cell[name] is None else f"{cell[name]:.1e}" for name in MEASURES),
        ]
        for cell in figures["cells"]
    ]


def worst_lines(figures: dict[str, Any]) -> list[list[str]]:
    """The worst of each precision, under the same header."""
    count = len(HEADER) - len(MEASURES) - 3
    return [
        ["worst", *[""] * count, precision, "", *(f"{values[name]:.1e}" for name in MEASURES)]
        for precision, values in figures["worst"].items()
    ]


def show(figures: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(*HEADER)
    for line in [*lines(figures), *worst_lines(figures)]:
        table.add_row(*line)
    Console().print(table)


def markdown(figures: dict[str, Any]) -> str:
    """The table and its summary, as part of a document."""
    bars = "; ".join(f"{name}: " + ", ".join(f"{kind} {bar:g}" for kind, bar in values.items()) for name, values in BARS.items())
    measured = f"{len(figures['cells'])} of the {figures['listed']} layouts of the list were measured"
    passed = f"{measured}, {len(figures['exceeded'])} of them outside the bars ({bars})."
    message = f"Measured {figures['date']} on {figures['hardware']}, {figures['steps']} steps (bf16: the first). {passed}"
    body = [list(HEADER), ["---"] * len(HEADER), *worst_lines(figures), *lines(figures)]
    return "\n".join([message, "", *("| " + " | ".join(line) + " |" for line in body)])


def fill_in(document: Path, text: str) -> None:
    """Replace the text between the markers of `document`.

    Raises:
        MoseError: the document lacks a marker.
    """
    old = document.read_text("utf-8")
    if BEGIN not in old or END not in old:
        raise MoseError(f"{document}: markers: not found, expected the lines {BEGIN} and {END}")
    before, rest = old.split(BEGIN, 1)
    write_text(document, f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END, 1)[1]}")


if __name__ == "__main__":
    main()
