"""Peak memory of `mose-data dedup` on synthetic functions, at a tenth of the number and at the number, and what grows with it."""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = 8000
BATCH = 10_000
COPIES = 0.2
MEGABYTE = 1 << 20
# A process that reads its own peak at its end: the kernel's figure for children would be the largest of all of them so far.
SCRIPT = (
    "import re, sys; from pathlib import Path; from data_prep.cli import commands; from mose.command import run_command\n"
    "code = run_command('mose-data', '', commands(), sys.argv[1:])\n"
    "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]); sys.exit(code)"
)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Peak resident memory of each phase, in a process of its own, and the size of the phases' files."""
    number = options.documents or 1_000_000
    found: dict[str, Any] = {}
    for documents in (number // 10, number):
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            folder = Path(scratch)
            write_documents(folder / "texts.parquet", documents, options.seed)
            words = ["dedup", f"--inputs=[{folder / 'texts.parquet'}]", "--columns=[text]", f"--output={folder / 'out'}"]
            peaks = {}
            for phase in ("signatures", "bands", "verify", "groups", "cut"):
                command = [sys.executable, "-c", SCRIPT, *words, "--phase", phase]
                lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                peaks[phase] = round(int(lines[-1]) * 1024 / MEGABYTE)
            disk = sum(path.stat().st_size for path in (folder / "out" / "phases").rglob("*") if path.is_file())
            removed = sum(
                int(re.search(r'"removed": (\d+)', path.read_text("utf-8"))[1])  # type: ignore[index]
                for path in (folder / "out" / "phases" / "cut" / "tasks").glob("task-*.json")
            )
            found[f"{documents} documents"] = {
                "peak_mebibytes": peaks,
                "removed": removed,
                "phases_bytes_per_document": round(disk / documents),
                "input_mebibytes": round((folder / "texts.parquet").stat().st_size / MEGABYTE),
            }
    return {"memory_bytes_of_the_config": 1 << 30, "num_tasks": 8, "words_per_document": "30 to 90", **found}


def write_documents(path: Path, number: int, seed: int) -> None:
    """Synthetic functions of 30 to 90 words; a fifth are copies of earlier ones with a few words changed."""
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        for batch in batches(number, np.random.default_rng(seed)):
            writer.write_table(pa.table({"text": batch}))


def batches(number: int, random: np.random.Generator) -> Iterator[list[str]]:
    words = np.array([f"{'abcdefgh'[n % 8]}{n * 7919 % 65536:x}_{n % 97}" for n in range(WORDS)])
    earlier: list[list[str]] = []
    for start in range(0, number, BATCH):
        texts = []
        for _ in range(min(BATCH, number - start)):
            if earlier and random.random() < COPIES:
                parts = list(earlier[random.integers(len(earlier))])
                parts[random.integers(len(parts))] = "changed"
            else:
                parts = words[random.integers(0, WORDS, random.integers(30, 90))].tolist()
                if len(earlier) < BATCH:
                    earlier.append(parts)
            texts.append(" ".join(parts))
        yield texts
