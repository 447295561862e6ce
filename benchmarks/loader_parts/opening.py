"""Time and memory from a fresh process to the batch at row 500,000,000 of a simulated data set."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.pretrain.simulated import simulated

START = 500_000_000
BATCH_ROWS = 2048

PROGRAM = """
import json, sys, time
from pathlib import Path
from pretrain.data.order import rows_of_run
from pretrain.storage.local_rows import LocalRows
def private():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])
start, count = int(sys.argv[2]), int(sys.argv[3])
before, wall, cpu = private(), time.perf_counter(), time.process_time()
rows = LocalRows(Path(sys.argv[1]), "train")
numbers, _ = rows_of_run(0, start, count, len(rows))
labels = rows.labels(numbers)
tokens = [rows.tokens(numbers[first : first + 32]) for first in range(0, count, 32)]
seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
assert (labels.num_tokens == 2048).all()
del tokens
print(json.dumps({"seconds": seconds, "grown_kib": private() - before, "rows": len(rows), "shards": len(rows.table.shards)}))
"""


def measure_opening() -> dict[str, object]:
    """Two data sets of 1,000 shards, of 600 million and of a million rows: a whole global batch read by one process."""
    found = {}
    for name, shards, rows, start in (("600M_rows", 1000, 600_000, START), ("1M_rows", 1000, 1000, 900_000)):
        with tempfile.TemporaryDirectory() as scratch:
            dataset = simulated(Path(scratch) / "data", shards, rows, start, BATCH_ROWS)
            words = [sys.executable, "-c", PROGRAM, str(dataset), str(start), str(BATCH_ROWS)]
            runs = [json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout) for _ in range(3)]
        best = min(runs, key=lambda run: run["seconds"]["wall"])
        found[name] = {**best, "start": start, "batch_rows": BATCH_ROWS, "runs": len(runs)}
    return {**found, "bars": {"seconds": 1, "memory": "the same at any number of rows"}}
