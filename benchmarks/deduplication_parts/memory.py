"""Memory, disk and time of `mose-data dedup` on many short functions: at a tenth of the number, at the number, and at ten times.

The functions are made of natural ones (`--parquet`): the first 48 words of two of them, half of the words renamed. A quarter are
copies of one of the 2,000 before with up to three words changed, so that groups stay small, as they do in larger data sets.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.deduplication_parts.texts import natural_texts
from mose.files.json_file import parse_json

PHASES = ("signatures", "bands", "verify", "groups", "cut")
BATCH = 2_000
COPIES = 0.25
WORDS = 48
LARGEST = 2_000
MEGABYTE = 1 << 20
MEMORY_BYTES = 1 << 29
NUM_TASKS = 8


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of each phase in a process of its own, and the memory of ten times as many documents by the line through both."""
    number = options.documents or 1_000_000
    functions = [text for text in natural_texts(options.parquet, 0, options.seed) if len(text) <= LARGEST]
    found: dict[str, dict[str, Any]] = {}
    for documents in (number // 10, number):
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            found[str(documents)] = figures(Path(scratch), functions, documents, options.seed)
    small, large = (found[str(documents)]["phases"] for documents in (number // 10, number))
    allocated = {name: (small[name]["allocated_mebibytes"], large[name]["allocated_mebibytes"]) for name in PHASES}
    # Nine tenths of the number lie between the two sizes, nine times the number beyond the larger one.
    beyond = {name: round(high + max(high - low, 0) * 10) for name, (low, high) in allocated.items()}
    return {
        "memory_bytes": MEMORY_BYTES,
        "num_tasks": NUM_TASKS,
        "natural_functions": len(functions),
        "documents": found,
        f"allocated_mebibytes_expected_of_{number * 10}": beyond,
    }


def figures(folder: Path, functions: list[str], documents: int, seed: int) -> dict[str, Any]:
    """Figures of one run of all phases."""
    characters = write_documents(folder / "texts.parquet", functions, documents, seed)
    words = ["dedup", f"--inputs=[{folder / 'texts.parquet'}]", "--columns=[text]", f"--output={folder / 'out'}"]
    words += [f"--num_tasks={NUM_TASKS}", f"--memory_bytes={MEMORY_BYTES}"]
    phases = {phase: peaks([sys.executable, "-m", "data_prep.cli", *words, "--phase", phase]) for phase in PHASES}
    disk = {name: sum(f.stat().st_size for f in (folder / "out" / name).rglob("*") if f.is_file()) for name in ("phases", "rows")}
    markers = [parse_json(path.read_bytes()) for path in (folder / "out" / "phases").glob("*/tasks/task-*.json")]
    counts = {name: sum(marker["counts"].get(name, 0) for marker in markers) for name in ("removed", "compared", "groups")}
    return {
        "mean_characters": round(characters / documents),
        "input_mebibytes": round((folder / "texts.parquet").stat().st_size / MEGABYTE),
        "phases": phases,
        **counts,
        "bytes_per_document_of_the_phases": round(disk["phases"] / documents),
        "result_mebibytes": round(disk["rows"] / MEGABYTE),
    }


def peaks(command: list[str]) -> dict[str, float]:
    """Peak memory and seconds of a command.

    Allocated is anonymous memory, sampled. Resident memory also counts pages of mapped files, which the kernel may drop.
    """
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        allocated = resident = 0
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
            except OSError:
                break
            fields = dict(line.split(":", 1) for line in status.splitlines())
            allocated = max(allocated, int(fields.get("RssAnon", "0").split()[0]))
            resident = max(resident, int(fields.get("VmHWM", "0").split()[0]))
            time.sleep(0.05)
        if process.wait() != 0:
            log.seek(0)
            raise SystemExit(log.read().decode("utf-8", "replace")[-2000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "allocated_mebibytes": round(allocated / 1024),
        "resident_mebibytes": round(resident / 1024),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "seconds": round(time.monotonic() - start, 1),
    }


def write_documents(path: Path, functions: list[str], number: int, seed: int) -> int:
    """Write the documents; returns their characters."""
    characters = 0
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        for texts in batches(functions, number, np.random.default_rng(seed)):
            writer.write_table(pa.table({"text": texts}))
            characters += sum(map(len, texts))
    return characters


def batches(functions: list[str], number: int, random: np.random.Generator) -> Iterator[list[str]]:
    """The documents, `BATCH` at a time."""
    parts = [function.split(" ") for function in functions]
    earlier: list[list[str]] = []
    for start in range(0, number, BATCH):
        made: list[list[str]] = []
        size = min(BATCH, number - start)
        choices, is_copy = random.integers(0, len(parts), (size, 2)).tolist(), (random.random(size) < COPIES).tolist()
        for (one, two), copied in zip(choices, is_copy, strict=True):
            if copied and earlier:
                words = list(earlier[int(random.integers(len(earlier)))])
                for place in random.integers(0, len(words), int(random.integers(4))).tolist():
                    words[place] = "changed"
            else:
                words = (parts[one][:WORDS] + parts[two][:WORDS]) or ["empty"]
                renamed = np.flatnonzero(random.random(len(words)) < 0.5).tolist()
                suffixes = random.integers(0, 1 << 20, len(renamed)).tolist()
                for place, suffix in zip(renamed, suffixes, strict=True):
                    words[place] = f"{words[place][:12]}{suffix:x}"
            made.append(words)
        earlier = made
        yield [" ".join(words) for words in made]
