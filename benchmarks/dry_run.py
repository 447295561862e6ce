"""What `mose-data pack --dry-run` says before against what packing gives: files, tokens, rows, disk and core-hours.

python -m benchmarks.dry_run --case NAME --set sources.stack_v2='[a.parquet]' --set duplicates=drop --tokenizer TOKENIZER \
    --sample-megabytes 16 --output benchmarks/results/dry_run.json

Each call adds its case to the file, or replaces it.
"""

import argparse
import dataclasses
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from data_prep.pipeline.assignment import assign_sources
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.estimate.estimate import SAMPLE_BYTES, Estimate, estimate
from mose.config import load_config, save_config
from mose.dataset.manifest import SPLITS, read_manifest


def measure(config: PackConfig, sample_bytes: int, repeats: int) -> dict[str, Any]:
    """The estimate, the outcome of the run, and the error of each figure as a share of the outcome; seconds are medians."""
    config = config.resolve()
    runs, said = [], []
    for _ in range(repeats):
        # In turn, because the speed of a shared machine changes.
        runs.append(_pack(config))
        said.append(_in_process(config, sample_bytes))
    found = {**runs[0], "core_seconds": statistics.median(run["core_seconds"] for run in runs)}
    estimate_of = said[0][0]
    expected = {
        "files": estimate_of.files,
        "tokens": estimate_of.text_tokens,
        "rows": estimate_of.rows,
        "disk_bytes": estimate_of.disk_bytes,
        "core_seconds": statistics.median(one.cost.total for one, *_ in said),
    }
    cost = statistics.median(seconds for _, seconds, _ in said)
    return {
        "date": date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores shared with other work, {platform.processor() or platform.machine()}, no GPU",
        "load_average": os.getloadavg()[0],
        "seed": config.seed,
        "repeats": repeats,
        "input_bytes": estimate_of.bytes,
        "sampled_bytes": estimate_of.sampled_bytes,
        "margin": estimate_of.margin,
        "dry_run_core_seconds": cost,
        "dry_run_share": cost / found["core_seconds"],
        "dry_run_peak_mib": max(peak for *_, peak in said),
        "estimate": expected,
        "run": {name: value for name, value in found.items() if name in expected},
        "error": {name: expected[name] / found[name] - 1 for name in expected},
        "core_seconds_of_repeats": {"said": [one.cost.total for one, *_ in said], "run": [run["core_seconds"] for run in runs]},
        "said_by_phase": dataclasses.asdict(said[0][0].cost),
        "dropped": found["dropped"],
    }


def _pack(config: PackConfig) -> dict[str, Any]:
    """Outcome and CPU seconds of the command, as a user runs it."""
    folder = Path(config.output)
    shutil.rmtree(folder, ignore_errors=True)
    save_config(config, folder.with_name("pack.yaml"))
    began = _cpu_seconds()
    command = [sys.executable, "-m", "data_prep.cli", "pack", "--config", str(folder.with_name("pack.yaml"))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    cpu = _cpu_seconds() - began
    manifest = read_manifest(folder)
    counts = manifest.statistics
    return {
        "files": sum(seen["files"] for seen in counts["ledger"]["seen"].values()),
        "tokens": sum(counts["splits"][split]["text_tokens"] for split in SPLITS),
        "rows": sum(map(manifest.rows, SPLITS)),
        "disk_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "core_seconds": cpu,
        "dropped": {name: tally["files"] for name, tally in counts["ledger"]["dropped"].items()},
    }


def _in_process(config: PackConfig, sample_bytes: int) -> tuple[Estimate, float, float]:
    """The estimate, made in a process of its own as the command does, with its CPU seconds and peak MiB."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(_estimate, config, sample_bytes).result()


def _estimate(config: PackConfig, sample_bytes: int) -> tuple[Estimate, float, float]:
    said = estimate(config, assign_sources(config), sample_bytes)
    return said, _cpu_seconds(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    """Measure one case and write it into the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", required=True, help="Name of the case in the results.")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="A field of the config, as YAML.")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--sample-megabytes", type=float, default=SAMPLE_BYTES / 1e6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    values = {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in arguments.set)}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        places = {"output": f"{folder}/dataset", "tokenizer": arguments.tokenizer}
        config = load_config(PackConfig, overrides={**values, **places})
        case = measure(config, round(arguments.sample_megabytes * 1e6), arguments.repeats)
    results = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else {}
    arguments.output.write_text(json.dumps({**results, arguments.case: case}, indent=1) + "\n", "utf-8")
    errors = {name: f"{value:+.1%}" for name, value in case["error"].items()}
    print(arguments.case, errors, f"margin {case['margin']:.1%}", f"{time.perf_counter() - began:.0f} s")
    print(case["core_seconds_of_repeats"], case["said_by_phase"])


if __name__ == "__main__":
    main()
