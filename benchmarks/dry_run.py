"""What `mose-data pack --dry-run` says before against what packing gives: files, tokens, rows, disk and core-hours.

python -m benchmarks.dry_run --case NAME --set sources.stack_v2='[a.parquet]' --set duplicates=drop --tokenizer TOKENIZER \
    --sample-megabytes 16 --output benchmarks/results/dry_run.json

Each call adds its case to the file, or replaces it.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from data_prep.pipeline.assignment import assign_sources
from data_prep.pipeline.config import PackConfig
from data_prep.pipeline.estimate.estimate import SAMPLE_BYTES, estimate
from mose.config import load_config, save_config
from mose.dataset.manifest import SPLITS, read_manifest


def measure(config: PackConfig, sample_bytes: int) -> dict[str, Any]:
    """The estimate, the outcome of the run, and the error of each figure as a share of the outcome."""
    config = config.resolve()
    began = _cpu_seconds()
    said = estimate(config, assign_sources(config), sample_bytes)
    cost = _cpu_seconds() - began
    began = _cpu_seconds()
    # A process of its own, as a user runs it: this one has loaded tokenizer and rules already.
    folder = Path(config.output)
    save_config(config, folder.with_name("pack.yaml"))
    subprocess.run([sys.executable, "-m", "data_prep.cli", "pack", "--config", folder.with_name("pack.yaml")], check=True)
    cpu = _cpu_seconds() - began
    manifest = read_manifest(folder)
    statistics = manifest.statistics
    found = {
        "files": sum(counts["files"] for counts in statistics["ledger"]["seen"].values()),
        "tokens": sum(statistics["splits"][split]["text_tokens"] for split in SPLITS),
        "rows": sum(map(manifest.rows, SPLITS)),
        "disk_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "core_seconds": cpu,
    }
    expected = {
        "files": said.files,
        "tokens": said.text_tokens,
        "rows": said.rows,
        "disk_bytes": said.disk_bytes,
        "core_seconds": said.core_seconds,
    }
    return {
        "date": date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores shared with other work, {platform.processor() or platform.machine()}, no GPU",
        "seed": config.seed,
        "input_bytes": said.bytes,
        "sampled_bytes": said.sampled_bytes,
        "margin": said.margin,
        "dry_run_core_seconds": cost,
        "estimate": expected,
        "run": found,
        "error": {name: expected[name] / found[name] - 1 for name in found},
        "dropped": {name: tally["files"] for name, tally in statistics["ledger"]["dropped"].items()},
    }


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
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    values = {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in arguments.set)}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        places = {"output": f"{folder}/dataset", "tokenizer": arguments.tokenizer}
        config = load_config(PackConfig, overrides={**values, **places})
        case = measure(config, round(arguments.sample_megabytes * 1e6))
    results = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else {}
    arguments.output.write_text(json.dumps({**results, arguments.case: case}, indent=1) + "\n", "utf-8")
    errors = {name: f"{value:+.1%}" for name, value in case["error"].items()}
    print(arguments.case, errors, f"margin {case['margin']:.1%}", f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
