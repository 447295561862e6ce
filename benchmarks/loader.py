"""The loader: speed against webdataset, opening a huge data set, how well the order mixes, cold cache and staging.

python -m benchmarks.loader [--packed DATASET] [--scratch FOLDER] [--checks] [--output benchmarks/results/FILE.json]
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.loader_parts.checks import measure_checks
from benchmarks.loader_parts.cold import measure_cold
from benchmarks.loader_parts.opening import measure_opening
from benchmarks.loader_parts.order import measure_order
from benchmarks.loader_parts.speed import measure_speed
from mose.files.atomic_file import write_json

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packed", type=Path, help="Data set with rows of 2,048 (default: packs this Python's packages).")
    parser.add_argument("--scratch", type=Path, help="Folder on the disk to measure (default: TMPDIR).")
    parser.add_argument("--checks", action="store_true", help="Measure only what checking every row costs, on against off.")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        packed = arguments.packed or pack_packages(Path(scratch))
        figures: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "hardware": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, no GPU",
            "load_average": os.getloadavg(),
            "checks": measure_checks(packed),
        }
        if not arguments.checks:
            figures |= {
                "speed": measure_speed(packed),
                "order": measure_order(packed),
                "opening": measure_opening(),
                "cold": measure_cold(Path(scratch)),
            }
    Console(soft_wrap=True).print(table_of(figures))
    if arguments.output:
        write_json(arguments.output, figures)


def pack_packages(scratch: Path) -> Path:
    """Pack this Python's installed packages as the quickstart does, in rows of 2,048."""
    configs = ROOT / "configs" / "quickstart"
    tokenizer, packed = scratch / "tokenizer", scratch / "packed"
    data = (sys.executable, "-m", "data_prep.cli")
    subprocess.run(
        (*data, "train-tokenizer", "--config", str(configs / "tokenizer.yaml"), "--output", str(tokenizer)), check=True
    )
    words = ("--config", str(configs / "pack.yaml"), "--output", str(packed), "--tokenizer", str(tokenizer))
    subprocess.run((*data, "pack", *words, "--packing.sequence_length", "2048"), check=True)
    return packed


def table_of(figures: dict[str, Any]) -> Table:
    """Each number beside its bar."""
    table = Table("figure", "measured", "bar", title=f"loader, {figures['date']}, {figures['hardware']}")
    checks = figures["checks"]
    cost, share = checks["microseconds_per_row"]["checks"], checks["share_of_time_at_10000_rows_per_second"]
    table.add_row(f"checking every row ({checks['crc32']}), CPU", f"{cost} us per row", "")
    table.add_row("  share of the time at 10,000 rows/s", f"{share:.2%}", "<= 2 %")
    table.add_row("  rate of the loader, on : off", f"{checks['ratio_of_loader_rates_on_to_off']:.3f}", "")
    if "speed" not in figures:
        return table
    speed, order, opening, cold = (figures[name] for name in ("speed", "order", "opening", "cold"))
    rates = speed["rows_per_cpu_second"]
    table.add_row("raw rows at random, rows/s per core", f"{rates['ours_raw']:,}", "")
    table.add_row("  against webdataset", f"{speed['ratio_raw']:,} x ({rates['webdataset_raw']:,} rows/s)", ">= 100 x")
    for name in ("micro_batch_4", "micro_batch_32"):
        table.add_row(f"masked batches, {name}, rows/s per core", f"{rates[f'ours_masked_{name}']:,}", ">= 10,000")
    table.add_row("  against webdataset", f"{speed['ratio_masked']:,} x ({rates['webdataset_masked']:,} rows/s)", ">= 5 x")
    milliseconds = speed["cpu_milliseconds_a_step_of_one_rank_of_128"]
    table.add_row("  one rank of 128, 16 rows of 2,048", f"{milliseconds} ms CPU per step", "")
    block = str(order["block_rows_default"])
    for name in ("rows_as_packed", "rows_shuffled_in_shard", "model"):
        table.add_row(f"repositories repeated, {name}", f"{order[f'{name}_by_block_rows'][block]:.3f}", "<= 1.1")
    for name in ("600M_rows", "1M_rows"):
        seconds = opening[name]["seconds"]
        table.add_row(f"first batch, {name}", f"{seconds['wall']:.2f} s wall, {seconds['cpu']:.2f} s CPU", "< 1 s")
        table.add_row("  memory added", f"{opening[name]['grown_kib'] / 1024:.1f} MiB", "the same")
    for name in ("mapped_at_random", "staged_blocks"):
        faults = cold[name]["major_faults_per_1000_rows"]
        table.add_row(f"cold cache, {name}", f"{cold[name]['rows_per_second']:,} rows/s, {faults} major faults a 1,000 rows", "")
    return table


if __name__ == "__main__":
    main()
