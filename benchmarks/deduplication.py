"""Near-duplicates in figures: speed of signatures, recall, precision, memory, and whole pipelines beside those of others.

python -m benchmarks.deduplication signatures --parquet FILE ... [--output benchmarks/results/FILE.json]
python -m benchmarks.deduplication quality --parquet FILE ... [--output FILE.json [--name "quality of functions"]]
python -m benchmarks.deduplication pipelines --parquet FILE ... --peers-python PYTHON [--output FILE.json]
python -m benchmarks.deduplication rules --parquet FILE [--output FILE.json]
python -m benchmarks.deduplication memory --parquet FILE ... [--documents 1000000] [--output FILE.json]

`signatures` needs datasketch and rensa in the Python that runs it; `pipelines` names a Python that has datatrove and text-dedup,
which pin versions that the project does not have. Each part adds its figures to the file. One thread; CPU seconds of the process.
"""

import argparse
import importlib
import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path

PARTS = ("signatures", "quality", "rules", "pipelines", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--parquet", type=Path, nargs="+", default=[], help="The Stack v2 rows with content, or code_a, code_b.")
    parser.add_argument("--documents", type=int, default=0, help="Number of documents (default: that of the part).")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers-python", type=Path, help="Python with datatrove and text-dedup.")
    parser.add_argument("--scratch", type=Path, help="Folder for data sets and results of the pipelines (default: temporary).")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--name", help="Name of the figures in that file (default: the part's).")
    options = parser.parse_args()
    # Before numpy and rensa are imported, which read these.
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "RENSA_NUM_THREADS"):
        os.environ[name] = "1"
    module = importlib.import_module(f"benchmarks.deduplication_parts.{options.part}")
    found = {
        "date": str(datetime.now(timezone.utc).date()),
        "hardware": f"{platform.machine()}, {processor()}, {os.cpu_count()} cores shared with other work, one thread",
        "seed": options.seed,
        "inputs": [path.name for path in options.parquet],
        **module.measure(options),
    }
    print(json.dumps(found, indent=1))
    if options.output:
        before = json.loads(options.output.read_text("utf-8")) if options.output.exists() else {}
        options.output.write_text(json.dumps({**before, options.name or options.part: found}, indent=1) + "\n", "utf-8")


def processor() -> str:
    """Name of the processor, where the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
