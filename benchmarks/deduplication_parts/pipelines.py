"""Whole pipelines on one parquet file: `mose-data dedup`, datatrove's four MinHash stages and text-dedup's command.

Each peer keeps its own shingles, because that is how it is used: datatrove takes 5-grams of words (spaCy's tokenizer), text-dedup
5-grams of words between non-letters. All have 25 bands of 10 rows, one process and one thread. Neither peer verifies its pairs.
CPU seconds are those of the process and its children; beside them those of the same command on 50 documents, its start.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.deduplication_parts.texts import natural_texts

BANDS, ROWS, WORDS = 32, 8, 5
START_DOCUMENTS = 50
PEERS = Path(__file__).with_name("datatrove_stages.py")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of each pipeline in each repeat, and ratios with and without the start."""
    texts = natural_texts(options.parquet, options.documents or 4000, options.seed)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        seconds: dict[str, list[float]] = {}
        starts: dict[str, float] = {}
        kept: dict[str, int] = {}
        for repeat in range(-1, options.repeats):
            chosen = texts[:START_DOCUMENTS] if repeat < 0 else texts
            folder = Path(scratch) / str(repeat)
            (folder / "data").mkdir(parents=True)
            table = pa.table({"id": list(map(str, range(len(chosen)))), "text": chosen})
            pq.write_table(table, folder / "data" / "texts.parquet")
            for name, command in commands(folder, options.peers_python).items():
                used = cpu_seconds(command)
                if repeat < 0:
                    starts[name] = used
                else:
                    seconds.setdefault(name, []).append(used)
                    kept[name] = rows_kept(name, folder)
    ours = "mose-data dedup"
    medians = {name: sorted(found)[len(found) // 2] for name, found in seconds.items()}
    return {
        "documents": len(texts),
        "mean_characters": round(sum(map(len, texts)) / len(texts)),
        "cpu_seconds": {name: [round(each, 2) for each in found] for name, found in seconds.items()},
        "cpu_seconds_of_the_start": {name: round(found, 2) for name, found in starts.items()},
        "rows_kept": kept,
        "ratio": {name: round(found / medians[ours], 2) for name, found in medians.items()},
        "ratio_without_the_start": {
            name: round((found - starts[name]) / (medians[ours] - starts[ours]), 2) for name, found in medians.items()
        },
    }


def commands(folder: Path, peers_python: Path) -> dict[str, list[str]]:
    """The command of each pipeline, from `folder/data` to a folder of its own."""
    data = folder / "data" / "texts.parquet"
    text_dedup = ["--path", "parquet", "--data_files", str(data), "--split", "train", "--column", "text", "--num_proc", "1"]
    text_dedup += ["--cache_dir", str(folder / "cache"), "--output", str(folder / "text_dedup"), "--threshold", "0.7"]
    text_dedup += ["--num_perm", "256", "--b", str(BANDS), "--r", str(ROWS), "--ngram", str(WORDS), "--min_length", "5"]
    ours = [f"--inputs=[{data}]", "--columns=[text]", f"--output={folder / 'ours'}", "--num_tasks=1"]
    return {
        "mose-data dedup": [sys.executable, "-m", "data_prep.cli", "dedup", *ours],
        "datatrove": [str(peers_python), str(PEERS), str(folder / "data"), str(folder / "datatrove")],
        "text-dedup": [str(peers_python), "-m", "text_dedup.minhash", *text_dedup, "--batch_size", "10000"],
    }


def cpu_seconds(command: list[str]) -> float:
    """CPU seconds of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def rows_kept(name: str, folder: Path) -> int:
    """Documents that a pipeline left."""
    if name == "text-dedup":
        return sum(pa.ipc.open_stream(path).read_all().num_rows for path in (folder / "text_dedup").glob("*.arrow"))
    place = folder / "ours" / "rows" if name == "mose-data dedup" else folder / "datatrove" / "kept"
    return sum(pq.read_metadata(path).num_rows for path in place.glob("*.parquet"))
